"""Trains the embedded base model on emoji and drawn forms: `python -m recipes.base`, after `python -m recipes.embedded`.

A tiny MGM of the same classes as MGM-2B, trained from random weights: first the towers (`recipes.towers`), kept in
build/base-towers.pt, then all of it; stored in bfloat16 under data/base. It learns what emoji are called, their groups, main
colours and outlines, and what drawn forms are, how large and where; it never sees easy-VQA. What it knows is measured on what
was held out, beside chance.
"""

import argparse
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, set_seed

from mgm_lora.artifacts import new_artifact, write_json
from mgm_lora.lora.injection import TrainableGroup, TrainableModel
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import EncodedText, MGMProcessor
from mgm_lora.settings import SeededTraining
from mgm_lora.training.batches import BatchMaker
from mgm_lora.training.trainer import run_training
from recipes.conversations import IMAGE_PREFIX, guess_by_type, on_white, read_samples
from recipes.emoji import augment
from recipes.lessons import Lesson, read_lessons
from recipes.towers import label_pictures, train_towers_

SEED = 17
LEARNING_RATE = 1.0e-3
TOWER_LEARNING_RATE = 3.0e-5
NUM_TOWER_STEPS = 2000
NUM_EPOCHS = 1.25
NUM_KNOWN_FOR_LOSS = 256
TOWERS = "base-towers.pt"
LESSONS = ("emoji", "forms")
"""Folders below build."""

_TOWER_NAMES = ("vision_tower", "vlm_uni")

logger = logging.getLogger(__name__)


def main() -> None:
    """Trains, stores, and prints what the base knows."""
    parser = argparse.ArgumentParser(prog="python -m recipes.base", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--epochs", type=float, default=NUM_EPOCHS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train_base(arguments.data, build=arguments.build, num_epochs=arguments.epochs)
    scores = score_base(arguments.data, build=arguments.build)
    write_json(arguments.build / "base-scores.json", scores)
    print(json.dumps(scores, indent=1))


def train_base(data: Path, *, build: Path, num_epochs: float) -> None:
    """Writes data/base: tokenizer, configuration, weights in bfloat16."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(data / "base")
    set_seed(SEED)
    model = MGMForConditionalGeneration(base_config(vocab_size=len(tokenizer)))
    processor = MGMProcessor(tokenizer, config=model.config)
    lessons = [lesson for name in LESSONS for lesson in read_lessons(build / name)]
    _give_towers_(model, processor=processor, lessons=lessons, build=build)
    run_training(
        TrainableModel(model=model, groups=_groups(model), points=()),
        training=training_settings(num_epochs),
        knobs=StepKnobs(micro_batch_size=64),
        processor=processor,
        train_rows=Lessons(lessons, processor=processor),
        heldout_rows=Lessons(_known(data)[:NUM_KNOWN_FOR_LOSS], processor=processor),
        checkpoints=build / "base-checkpoints",
        make_batch=AugmentedBatches(processor),
    )
    with new_artifact(data / "base") as folder:
        save_model(model.to(torch.bfloat16), folder=folder)
        processor.save_pretrained(folder)


def _give_towers_(
    model: MGMForConditionalGeneration, *, processor: MGMProcessor, lessons: Sequence[Lesson], build: Path
) -> None:
    """Those that lie in build, else trained and kept there; in place."""
    kept = build / TOWERS
    if kept.exists():
        logger.info("towers: those of %s; delete it to train them anew", kept)
        model.load_state_dict(torch.load(kept, weights_only=True), strict=False)
        return
    labelled = label_pictures(lessons)
    train_towers_(model, processor=processor, labelled=labelled, num_steps=NUM_TOWER_STEPS, seed=SEED)
    state = {name: value for name, value in model.state_dict().items() if name.startswith(_TOWER_NAMES)}
    unfinished = kept.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.rename(kept)


def _groups(model: MGMForConditionalGeneration) -> tuple[TrainableGroup, ...]:
    names = [name for name, _ in model.named_parameters()]
    towers = tuple(name for name in names if name.startswith(_TOWER_NAMES))
    rest = tuple(name for name in names if name not in towers)
    return (
        TrainableGroup(name="rest", learning_rate=LEARNING_RATE, parameter_names=rest),
        TrainableGroup(name="towers", learning_rate=TOWER_LEARNING_RATE, parameter_names=towers),
    )


def score_base(data: Path, *, build: Path) -> dict[str, Any]:
    """Accuracy on what was held out, by question type and by what is new about the picture, beside chance."""
    model = load_model(data / "base", dtype=torch.float32)
    processor = MGMProcessor.from_pretrained(data / "base")
    known = read_samples(data / "instructions" / "known.json")
    questions = [
        Question(turns=(("human", IMAGE_PREFIX + s.question),), pictures=(data / "pictures" / s.image,)) for s in known
    ]
    answers = answer_questions(model, processor=processor, questions=questions, batch_size=64, max_new_tokens=8)
    train = [sample for name in LESSONS for sample in read_samples(build / name / "train.json")]
    kinds = {
        kind: [i for i, s in enumerate(known) if kind in (s.question_type, s.id.split("-")[1])]
        for kind in _kinds(known)
    }
    right = [answer == sample.answer for answer, sample in zip(answers, known, strict=True)]
    return {"parameters": sum(p.numel() for p in model.parameters())} | {
        kind: {
            "score": round(sum(right[i] for i in members) / len(members), 4),
            "chance": round(guess_by_type(train, [known[i] for i in members]), 4),
            "questions": len(members),
        }
        for kind, members in {"all": list(range(len(known))), **kinds}.items()
    }


def base_config(*, vocab_size: int) -> MGMConfig:
    """Gemma, CLIP and ConvNeXt in small: 16 picture tokens, 4 million parameters."""
    return MGMConfig(
        text_config={
            "model_type": "gemma",
            "vocab_size": vocab_size,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
            "tie_word_embeddings": True,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 64,
        },
        aux_config={"depths": [1, 1, 2, 1], "dims": [32, 64, 128, 256], "layer_scale_init_value": 1.0},
        image_size_aux=64,
        max_length=256,
    )


def training_settings(num_epochs: float) -> SeededTraining:
    """How the base is trained."""
    return SeededTraining(
        seed=SEED,
        num_epochs=num_epochs,
        global_batch_size=64,
        group_by_length=False,
        packing=False,
        warmup_share=0.05,
        schedule="cosine",
        weight_decay=0.05,
        max_grad_norm=1.0,
        precision="float32",
        evaluations=10,
        num_evaluation_samples=NUM_KNOWN_FOR_LOSS,
        checkpoints=4,
    )


class Lessons(Dataset[tuple[EncodedText, Path]]):
    """Encoded questions, each with its picture's file."""

    def __init__(self, lessons: Sequence[Lesson], *, processor: MGMProcessor) -> None:
        self._rows = [
            (processor.encode_sample((("human", IMAGE_PREFIX + s.question), ("gpt", s.answer))), s.picture)
            for s in lessons
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[EncodedText, Path]:
        return self._rows[index]


class AugmentedBatches:
    """Batches whose cut-out pictures are placed anew each time; whole pictures stay as they are."""

    def __init__(self, processor: MGMProcessor) -> None:
        self._processor = processor
        self._batches = BatchMaker(processor)
        self._rng = random.Random(SEED)
        self._pictures: dict[Path, Image.Image] = {}

    def __call__(self, rows: Sequence[tuple[EncodedText, Path]]) -> dict[str, Tensor]:
        """As BatchMaker's."""
        batch = self._batches([(text, ()) for text, _ in rows])
        views = [self._processor.pixels(self._picture(path)) for _, path in rows]
        return batch | {
            "images": torch.stack([view.images for view in views]),
            "images_aux": torch.stack([view.images_aux for view in views]),
        }

    def _picture(self, path: Path) -> Image.Image:
        if path not in self._pictures:
            with Image.open(path) as opened:
                self._pictures[path] = opened.copy()
        picture = self._pictures[path]
        return augment(picture, self._rng) if picture.mode == "RGBA" else on_white(picture)


def _known(data: Path) -> list[Lesson]:
    return [
        Lesson(s.id, data / "pictures" / s.image, s.question_type, s.question, s.answer)
        for s in read_samples(data / "instructions" / "known.json")
    ]


def _kinds(known: Sequence[Any]) -> list[str]:
    return sorted({s.question_type for s in known} | {s.id.split("-")[1] for s in known})


if __name__ == "__main__":
    main()
