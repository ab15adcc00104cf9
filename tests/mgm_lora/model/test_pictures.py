"""Pixels as the published processor makes them, and pictures that are none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mgm_lora.errors import PictureError
from mgm_lora.model.pictures import MEAN, RESCALE, STD, open_picture, picture_pixels

from ...conftest import GOLDENS

FOLDER = GOLDENS / "preprocess"
RECORDED = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
SMALL = [case for case in RECORDED["cases"] if case["file"] == "small.safetensors"]
NAMES = sorted(RECORDED["image_names"])
REAL = [
    pytest.param(case, name, id=f"{case['case']}.{name}")
    for case in RECORDED["cases"]
    for name in NAMES
    if f"{case['case']}.{name}" in RECORDED["stats"]
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case["case"])
def test_small_sizes_agree(case: dict[str, Any], name: str) -> None:
    recorded = load_file(FOLDER / "small.safetensors")
    pixels = picture_pixels(
        open_picture(FOLDER / "images" / f"{name}.png"),
        image_size=case["image_size_raw"],
        image_size_aux=case["image_size_aux"],
        aspect_ratio=case["image_aspect_ratio"],
        image_grid=case["image_grid"],
        image_global=case["image_global"],
    )
    assert pixels.images.shape == recorded[f"{case['case']}.{name}.images"].shape
    assert (pixels.images - recorded[f"{case['case']}.{name}.images"]).abs().max() <= 1e-6
    assert torch.equal(pixels.images_aux, recorded[f"{case['case']}.{name}.images_aux"])


@pytest.mark.parametrize("case, name", REAL)
def test_real_size_agrees(case: dict[str, Any], name: str) -> None:
    recorded = np.load(FOLDER / case["file"])
    centres = load_file(FOLDER / case["patches"])
    pixels = picture_pixels(
        open_picture(FOLDER / "images" / f"{name}.png"),
        image_size=case["image_size_raw"],
        image_size_aux=case["image_size_aux"],
        aspect_ratio=case["image_aspect_ratio"],
        image_grid=case["image_grid"],
        image_global=case["image_global"],
    )
    uint8 = recorded[f"{name}.images_aux_uint8_hwc"].astype(np.float64)
    aux = ((uint8 * RESCALE).astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    assert torch.equal(pixels.images_aux, torch.from_numpy(aux).permute(2, 0, 1))
    assert torch.equal(_centre(pixels.images_aux), centres[f"{name}.images_aux_float32_center"])
    # interpolation rounds as the machine's vector width has it
    assert (_centre(pixels.images) - centres[f"{name}.images_float32_center"]).abs().max() <= 1e-6
    assert (pixels.images - torch.from_numpy(recorded[f"{name}.images_float16"]).float()).abs().max() <= 1e-3


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("with_whole", [False, True])
def test_crops_are_squares_of_the_shrunk_picture_and_the_whole_is_shrunk_twice(grid: int, with_whole: bool) -> None:
    size, size_aux = 12, 48 * grid
    picture = Image.effect_noise((53, 40), 80).convert("RGB")
    pixels = picture_pixels(
        picture,
        image_size=size,
        image_size_aux=size_aux,
        aspect_ratio="pad",
        image_grid=grid,
        image_global=with_whole,
    )
    shrunk = _bilinear(pixels.images_aux, size * grid)
    expected = [shrunk[:, r * size :, c * size :][:, :size, :size] for r in range(grid) for c in range(grid)]
    expected += [_bilinear(shrunk, size)] if with_whole else []
    found = pixels.images if pixels.images.ndim == 4 else pixels.images[None]
    assert pixels.images.ndim == (3 if len(expected) == 1 else 4)
    assert (found - torch.stack(expected)).abs().max() <= 1e-5


def _centre(pixels: Tensor) -> Tensor:
    middle = pixels.shape[-1] // 2
    return pixels[..., middle - 8 : middle + 8, middle - 8 : middle + 8]


def _bilinear(pixels: Tensor, size: int) -> Tensor:
    """Each new pixel from the four around its centre, by hand."""
    scale = pixels.shape[-1] / size
    places = np.clip((np.arange(size) + 0.5) * scale - 0.5, 0, None)
    low = np.minimum(places.astype(int), pixels.shape[-1] - 1)
    high = np.minimum(low + 1, pixels.shape[-1] - 1)
    share = torch.from_numpy(places - low)
    rows = pixels.double()[:, low] * (1 - share)[:, None] + pixels.double()[:, high] * share[:, None]
    return rows[..., low] * (1 - share) + rows[..., high] * share


def test_text_file_is_told_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("dear diary")
    with pytest.raises(PictureError, match=r"is no picture.*dear diary"):
        open_picture(path)


def test_cut_and_empty_and_missing_pictures_are_told_apart(tmp_path: Path) -> None:
    whole, cut, empty = tmp_path / "whole.png", tmp_path / "cut.png", tmp_path / "empty.png"
    Image.effect_noise((64, 64), 50).save(whole)
    cut.write_bytes(whole.read_bytes()[:600])
    empty.touch()
    with pytest.raises(PictureError, match="can't be decoded"):
        open_picture(cut)
    with pytest.raises(PictureError, match="an empty file"):
        open_picture(empty)
    with pytest.raises(PictureError, match="no picture at"):
        open_picture(tmp_path / "none.png")


def test_large_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (500, 500)).save(path)
    with pytest.raises(PictureError, match="500 x 500 pixels, allowed are 1000"):
        open_picture(path, max_pixels=1000)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert open_picture(path).size == (20, 40)


def test_sixteen_bits_are_not_clipped_to_white(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (np.asarray(open_picture(tmp_path / "a.png"))[..., 0] == values >> 8).all()
