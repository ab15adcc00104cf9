from pathlib import Path

import pytest
import torch
from PIL import Image

from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from recipes.base import base_config
from recipes.lessons import Lesson
from recipes.tokenizer import train_tokenizer
from recipes.towers import LabelledPictures, initialise_, label_pictures, train_towers_


@pytest.fixture
def model() -> MGMForConditionalGeneration:
    torch.manual_seed(0)
    return MGMForConditionalGeneration(base_config(vocab_size=300))


@pytest.fixture
def labelled(tmp_path: Path) -> LabelledPictures:
    """Thirty pictures, each with a name, every second with a colour."""
    lessons = []
    for number in range(30):
        picture = tmp_path / f"{number:02d}.png"
        Image.new("RGBA", (64, 64), (8 * number, 0, 0, 255)).save(picture)
        lessons.append(Lesson(f"n-{number}", picture, "emoji_name", "what is this?", f"name {number:02d}"))
        if number % 2:
            lessons.append(Lesson(f"c-{number}", picture, "emoji_colour", "what is its main color?", "red"))
    return label_pictures(lessons)


def test_pictures_without_an_answer_of_a_family_have_no_label(labelled: LabelledPictures) -> None:
    assert labelled.labels["emoji_name"].tolist() == list(range(30))
    assert labelled.labels["emoji_colour"].tolist() == [-100, 0] * 15


def test_fresh_weights_let_more_of_a_picture_through(model: MGMForConditionalGeneration) -> None:
    pictures = torch.randn(8, 3, 64, 64)
    before = _spread(model, pictures)
    initialise_(model)
    assert _spread(model, pictures) > 2 * before


def test_training_the_towers_leaves_the_language_model_alone(
    model: MGMForConditionalGeneration, labelled: LabelledPictures
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokenizer = train_tokenizer(["what is this?"], vocab_size=400, max_length=64)
    processor = MGMProcessor(tokenizer, config=model.config)
    train_towers_(model, processor=processor, labelled=labelled, num_steps=2, seed=1)
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        "vision_tower",
        "vision_tower_aux",
        "vlm_uni_query_projector",
        "vlm_uni_aux_projector",
        "vlm_uni_val_projector",
    }


def _spread(model: MGMForConditionalGeneration, pictures: torch.Tensor) -> float:
    """How much the high-resolution features differ between pictures."""
    with torch.no_grad():
        return float(model.aux_features(pictures).std(0).mean())
