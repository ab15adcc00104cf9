"""Teaches the base's towers to see before the language model learns to talk about it: MGM-2B's own towers come pretrained
too.

Several linear heads (an emoji's name, group, subgroup, colour, outline; a drawn form's kind, size, place) read the features
that the projector will get, and are thrown away. Trained from random weights together with its language model, a model this
small learns what is often answered and never looks. It doesn't know the language model.
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
from recipes.emoji import augment
from recipes.forms import KINDS, PLACES, SIZES, Form, draw_form
from recipes.lessons import Lesson

EMOJI_FAMILIES = ("emoji_name", "emoji_group", "emoji_subgroup", "emoji_colour", "emoji_outline")
NUM_EMOJI, NUM_FORMS = 24, 40
"""In a batch."""
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
NO_ANSWER = -100
_POSITION_STD = 0.3

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
    num_steps: int,
    seed: int,
) -> None:
    """In place: both towers and patch-info-mining; the heads are thrown away."""
    initialise_(model)
    width = 2 * model.config.vision_config.hidden_size
    emoji_heads = nn.ModuleDict({name: nn.Linear(width, len(found)) for name, found in labelled.answers.items()})
    form_heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in _NUM_ANSWERS.items()})
    parameters = [p for part in _seeing_parts(model) for p in part.parameters()]
    trained = [*parameters, *emoji_heads.parameters(), *form_heads.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.1)
    rng = random.Random(seed)
    seen = _Share()
    with tqdm(
        _batches(len(labelled.pictures), num_steps, rng), total=num_steps, desc="towers", mininterval=10
    ) as progress:
        for members in progress:
            forms = [draw_form(rng) for _ in range(NUM_FORMS)]
            pictures = [augment(labelled.pictures[i], rng) for i in members] + [form.picture for form in forms]
            features = _pooled(model, pictures, processor=processor)
            emoji_labels = {name: labels[members] for name, labels in labelled.labels.items()}
            losses = _losses(features[:NUM_EMOJI], emoji_heads, emoji_labels, seen)
            losses += _losses(features[NUM_EMOJI:], form_heads, _label_forms(forms), seen)
            torch.stack(losses).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix_str(seen.told(), refresh=False)


def label_pictures(lessons: Sequence[Lesson]) -> LabelledPictures:
    """Every emoji picture once, with what its open questions are answered."""
    known: dict[Path, dict[str, str]] = {}
    for lesson in lessons:
        if lesson.question_type in EMOJI_FAMILIES:
            known.setdefault(lesson.picture, {})[lesson.question_type] = lesson.answer
    answers = {
        name: tuple(sorted({found[name] for found in known.values() if name in found})) for name in EMOJI_FAMILIES
    }
    numbers = {name: {answer: number for number, answer in enumerate(found)} for name, found in answers.items()}
    labels = {
        name: torch.tensor([numbers[name][found[name]] if name in found else NO_ANSWER for found in known.values()])
        for name in EMOJI_FAMILIES
    }
    return LabelledPictures(pictures=tuple(_read(path) for path in known), labels=labels, answers=answers)


def initialise_(model: MGMForConditionalGeneration) -> None:
    """Draws the seeing parts' weights anew, in place: variance 1 / fan-in (LeCun 1998), and positions that are told apart.

    transformers draws most with a standard deviation of 0.02, made for a thousand channels: in towers this narrow the layers add little to
    what they are given, and little of where it lies.
    """
    for part in _seeing_parts(model):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    nn.init.normal_(model.get_parameter("vision_tower.embeddings.position_embedding.weight"), std=_POSITION_STD)


class _Share:
    """The share of right answers lately, by family."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}

    def add(self, name: str, right: Tensor) -> None:
        found = float(right.float().mean())
        self._shares[name] = 0.98 * self._shares.get(name, found) + 0.02 * found

    def told(self) -> str:
        return ", ".join(f"{name} {share:.2f}" for name, share in self._shares.items())


_NUM_ANSWERS = {"form_kind": len(KINDS), "form_size": len(SIZES), "form_place": len(PLACES)}


def _label_forms(forms: Sequence[Form]) -> dict[str, Tensor]:
    return {
        "form_kind": torch.tensor([KINDS.index(form.kind) for form in forms]),
        "form_size": torch.tensor([SIZES.index(form.size) for form in forms]),
        "form_place": torch.tensor([PLACES.index(form.place) for form in forms]),
    }


def _losses(features: Tensor, heads: nn.ModuleDict, labels: Mapping[str, Tensor], seen: _Share) -> list[Tensor]:
    losses = []
    for name, head in heads.items():
        answered = labels[name] != NO_ANSWER
        if answered.any():
            logits, wanted = head(features[answered]), labels[name][answered]
            seen.add(name, logits.argmax(-1) == wanted)
            losses.append(F.cross_entropy(logits, wanted))
    return losses


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
        if len(order) < NUM_EMOJI:
            order = rng.sample(range(num_pictures), num_pictures)
        yield order[:NUM_EMOJI]
        order = order[NUM_EMOJI:]


def _read(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.copy()
