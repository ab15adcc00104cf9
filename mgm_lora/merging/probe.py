"""A fixed set of samples that models are compared on: their logits where the answer stands, and their greedy answers.

It doesn't know which model it asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgm_lora.model.answering import Question, answer_questions, picture_slots
from mgm_lora.model.processor import MGMProcessor

BATCH_SIZE = 8


@dataclass(frozen=True)
class Probe:
    """A sample with its answer."""

    turns: tuple[tuple[str, str], ...]
    pictures: tuple[Path, ...]

    @property
    def question(self) -> Question:
        """The sample without its last answer."""
        return Question(turns=self.turns[:-1], pictures=self.pictures)


@dataclass(frozen=True)
class ProbeAnswers:
    """One model's."""

    logits: Tensor
    """[P, V], float32: all answer positions of all samples, under the true answers."""
    answers: tuple[str, ...]


def answer_probe(
    model: Any, *, probes: Sequence[Probe], processor: MGMProcessor, max_new_tokens: int, label: str
) -> ProbeAnswers:
    """Logits one sample at a time, so that no padding comes in; answers in batches, the same ones for every model."""
    logits = torch.cat([_answer_logits(model, probe, processor=processor) for probe in probes])
    answers = answer_questions(
        model,
        processor=processor,
        questions=[probe.question for probe in probes],
        batch_size=BATCH_SIZE,
        max_new_tokens=max_new_tokens,
        label=label,
    )
    return ProbeAnswers(logits=logits, answers=tuple(answers))


def _answer_logits(model: Any, probe: Probe, *, processor: MGMProcessor) -> Tensor:
    encoded = processor.encode_sample(probe.turns, num_pictures=len(probe.pictures))
    input_ids = torch.tensor([encoded.input_ids])
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": torch.tensor([encoded.labels]),
        **picture_slots([probe.pictures], processor=processor),
    }
    device = next(model.parameters()).device
    with torch.inference_mode():
        output = model(**{name: value.to(device) for name, value in batch.items()}, logits_at="labelled")
    logits: Tensor = output.logits
    return logits.float().cpu()
