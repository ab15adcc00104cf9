"""Teaches the base's towers to see before the language model learns to talk about it: MGM-2B's own towers come pretrained
too.

Several linear heads (name, group, subgroup, colour, outline) read the features that the projector will get, and are
thrown away. Trained from random weights together with its language model, a model this small learns what is often
answered and never looks. It doesn't know the language model.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.mining import mine_patch_info
from mgm_lora.model.processor import MGMProcessor
from recipes.emoji import EmojiSample, augment

FAMILIES = ("emoji_name", "emoji_group", "emoji_subgroup", "emoji_colour", "emoji_outline")
BATCH_SIZE = 64
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
NO_ANSWER = -100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures, and per family the number of each picture's answer, -100 for none."""

    pictures: tuple[Image.Image, ...]
    labels: Mapping[str, Tensor]
    answers: Mapping[str, tuple[str, ...]]


def train_towers_(
    model: MGMForConditionalGeneration,
    *,
    processor: MGMProcessor,
    labelled: LabelledPictures,
    num_epochs: float,
    seed: int,
) -> None:
    """In place: both towers and patch-info-mining; the heads are thrown away."""
    heads = nn.ModuleDict(
        {
            name: nn.Linear(2 * model.config.vision_config.hidden_size, len(found))
            for name, found in labelled.answers.items()
        }
    )
    parameters = [p for part in _seeing_parts(model) for p in part.parameters()]
    optimizer = torch.optim.AdamW([*parameters, *heads.parameters()], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    num_steps = int(num_epochs * len(labelled.pictures) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.1)
    rng = random.Random(seed)
    with tqdm(
        _batches(len(labelled.pictures), num_steps, rng), total=num_steps, desc="towers", mininterval=5
    ) as progress:
        for members in progress:
            features = _pooled(model, [augment(labelled.pictures[i], rng) for i in members], processor=processor)
            loss = sum(
                F.cross_entropy(head(features), labelled.labels[name][members], ignore_index=NO_ANSWER)
                for name, head in heads.items()
                if (labelled.labels[name][members] != NO_ANSWER).any()
            )
            assert isinstance(loss, Tensor)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{float(loss):.2f}")


def label_pictures(samples: Sequence[EmojiSample]) -> LabelledPictures:
    """Every picture once, with what its open questions are answered."""
    known: dict[Path, dict[str, str]] = {}
    for sample in samples:
        if sample.question_type in FAMILIES:
            known.setdefault(sample.picture, {})[sample.question_type] = sample.answer
    answers = {name: tuple(sorted({found[name] for found in known.values() if name in found})) for name in FAMILIES}
    numbers = {name: {answer: number for number, answer in enumerate(found)} for name, found in answers.items()}
    labels = {
        name: torch.tensor([numbers[name][found[name]] if name in found else NO_ANSWER for found in known.values()])
        for name in FAMILIES
    }
    return LabelledPictures(pictures=tuple(_read(path) for path in known), labels=labels, answers=answers)


def _seeing_parts(model: MGMForConditionalGeneration) -> list[nn.Module]:
    return [
        model.vision_tower,
        model.vision_tower_aux,
        model.vlm_uni_query_projector,
        model.vlm_uni_aux_projector,
        model.vlm_uni_val_projector,
    ]


def _pooled(model: MGMForConditionalGeneration, pictures: Sequence[Image.Image], *, processor: MGMProcessor) -> Tensor:
    """[B, 2 D]: mean and maximum over the patches of what the projector will get."""
    views = [processor.pixels(picture) for picture in pictures]
    clip = model.clip_features(torch.stack([view.images for view in views]))
    found = mine_patch_info(
        clip,
        model.aux_features(torch.stack([view.images_aux for view in views])),
        query_projector=model.vlm_uni_query_projector,
        aux_projector=model.vlm_uni_aux_projector,
        val_projector=model.vlm_uni_val_projector,
    )
    features = F.layer_norm(clip + found, (clip.shape[-1],))
    return torch.cat([features.mean(1), features.amax(1)], dim=-1)


def _batches(num_pictures: int, num_steps: int, rng: random.Random) -> Iterator[list[int]]:
    order: list[int] = []
    for _ in range(num_steps):
        if len(order) < BATCH_SIZE:
            order = rng.sample(range(num_pictures), num_pictures)
        yield order[:BATCH_SIZE]
        order = order[BATCH_SIZE:]


def _read(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.copy()
