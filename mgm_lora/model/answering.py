"""Asks a model questions about pictures: batched, greedy, each answer independent of its batch.

One way to answer for everything: scores, the merge proof and the registered model here, `ask` through a chat of the same tokens. It doesn't
know which model it asks (base, adapted, merged).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mgm_lora.errors import DataError
from mgm_lora.model.pictures import open_picture
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.sequence import PICTURE_TOKEN


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question, and the pictures that its `<image>` markers stand for."""

    turns: tuple[tuple[str, str], ...]
    pictures: tuple[Path, ...]


def answer_questions(
    model: Any,
    *,
    processor: MGMProcessor,
    questions: Sequence[Question],
    batch_size: int,
    max_new_tokens: int,
    label: str = "answering",
) -> list[str]:
    """The greedy answers, in the questions' order; shows progress with time left.

    Args:
        model: an MGM, adapted or not.
        processor: of the same checkpoint.
        questions: any number.
        batch_size: questions answered at once; similar lengths go together.
        max_new_tokens: longest answer.
        label: what the progress bar says.

    Raises:
        DataError: a question's `<image>` markers can't stand for its pictures, or it is longer than the model takes.
    """
    answers = [""] * len(questions)
    prompts = encode_questions(questions, processor=processor)
    for i, answer in stream_answers(
        model,
        processor=processor,
        questions=questions,
        prompts=prompts,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        label=label,
    ):
        answers[i] = answer
    return answers


def encode_questions(questions: Sequence[Question], *, processor: MGMProcessor) -> list[list[int]]:
    """The prompts of questions, before any is asked; raises as `answer_questions` does."""
    prompts = [processor.encode_prompt(question.turns, num_pictures=len(question.pictures)) for question in questions]
    for prompt in prompts:
        check_length(prompt, processor=processor)
    return prompts


def stream_answers(
    model: Any,
    *,
    processor: MGMProcessor,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    batch_size: int,
    max_new_tokens: int,
    label: str = "answering",
) -> Iterator[tuple[int, str]]:
    """Each question's place and answer as it comes, for who keeps them at once; `prompts` are those of `encode_questions`."""
    order = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    with tqdm(total=len(questions), desc=label, unit="question", mininterval=1.0, delay=2.0) as progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = collate_prompts(
                [prompts[i] for i in batch], pictures=[questions[i].pictures for i in batch], processor=processor
            )
            tokens = generate_tokens(model, inputs, processor=processor, max_new_tokens=max_new_tokens)
            for i, row in zip(batch, tokens, strict=True):
                yield i, processor.decode(row)
            progress.update(len(batch))


def collate_prompts(
    prompts: Sequence[list[int]], *, pictures: Sequence[Sequence[Path]], processor: MGMProcessor
) -> dict[str, Tensor]:
    """One batch for `forward` or `generate`: ids padded on the right, and the slots of pictures that the model expects."""
    length = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), processor.pad_token_id)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = torch.tensor(prompt)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    batch = {"input_ids": input_ids, "attention_mask": torch.arange(length) < lengths[:, None]}
    return batch | picture_slots(pictures, processor=processor)


def picture_slots(pictures: Sequence[Sequence[Path]], *, processor: MGMProcessor) -> dict[str, Tensor]:
    """`images` and `images_aux`, one slot per picture and an empty one for a row without; nothing if no row has any."""
    if not any(pictures):
        return {}
    config = processor.config
    images, images_aux = [], []
    for row in pictures:
        views = [processor.pixels(open_picture(path)) for path in row]
        images += [view.images for view in views] or [torch.zeros(config.images_shape)]
        images_aux += [view.images_aux for view in views] or [torch.zeros(config.images_aux_shape)]
    return {"images": torch.stack(images), "images_aux": torch.stack(images_aux)}


def check_length(prompt: Sequence[int], *, processor: MGMProcessor) -> None:
    """Raises DataError where a prompt is longer than the model takes: its end, which asks, would be cut."""
    num_positions, most = processor.num_positions(prompt), processor.config.max_length
    if num_positions > most:
        num_pictures = prompt.count(PICTURE_TOKEN)
        raise DataError(
            f"a question of {num_positions} tokens, {num_pictures * processor.num_picture_tokens} of them for {num_pictures} pictures, but the"
            f" model takes {most} (max_length in its config.json): ask with fewer pictures or words"
        )


def generate_tokens(
    model: Any, inputs: dict[str, Tensor], *, processor: MGMProcessor, max_new_tokens: int, **options: Any
) -> list[list[int]]:
    """The greedy tokens of each row; `options` go to the model's `generate`."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        tokens = model.generate(
            **{name: value.to(device) for name, value in inputs.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=processor.stop_token_ids,
            pad_token_id=processor.pad_token_id,
            **options,
        )
    rows: list[list[int]] = tokens.tolist()
    return rows
