"""Asks a model questions about pictures: batched, greedy, each answer independent of its batch.

One way to answer for everything: scores, the merge proof, `ask` and the registered model. It doesn't know which model
it asks (base, adapted, merged).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mgm_lora.model.pictures import open_picture
from mgm_lora.model.processor import MGMProcessor


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
    """
    prompts = [processor.encode_prompt(question.turns) for question in questions]
    order = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    answers = [""] * len(questions)
    with tqdm(total=len(questions), desc=label, unit="question", mininterval=1.0, delay=2.0) as progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = collate_prompts(
                [prompts[i] for i in batch], pictures=[questions[i].pictures for i in batch], processor=processor
            )
            for i, answer in zip(batch, _generate(model, inputs, processor, max_new_tokens), strict=True):
                answers[i] = answer
            progress.update(len(batch))
    return answers


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
    size, size_aux = processor.config.vision_config.image_size, processor.config.image_size_aux
    images, images_aux = [], []
    for row in pictures:
        views = [processor.pixels(open_picture(path)) for path in row]
        images += [view.images for view in views] or [torch.zeros(3, size, size)]
        images_aux += [view.images_aux for view in views] or [torch.zeros(3, size_aux, size_aux)]
    return {"images": torch.stack(images), "images_aux": torch.stack(images_aux)}


def _generate(model: Any, inputs: dict[str, Tensor], processor: MGMProcessor, max_new_tokens: int) -> list[str]:
    device = next(model.parameters()).device
    with torch.inference_mode():
        tokens = model.generate(
            **{name: value.to(device) for name, value in inputs.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=processor.stop_token_ids,
            pad_token_id=processor.pad_token_id,
        )
    return [processor.decode(row.tolist()) for row in tokens]
