from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgm_lora.decoding import to_rgb

RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)


def _decoded(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        rgb = to_rgb(picture)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "grey.pgm"])
def test_sixteen_bits_keep_their_shades(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    decoded = _decoded(tmp_path / name)
    assert (decoded[..., 0] == RAMP >> 8).all()
    assert (decoded == decoded[..., :1]).all()


def test_bytes_of_sixteen_bits_may_come_the_other_way_round(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (64, 64), RAMP.astype(">u2").tobytes()).save(tmp_path / "a.tiff")
    assert (_decoded(tmp_path / "a.tiff")[..., 0] == RAMP >> 8).all()


@pytest.mark.parametrize("values", [np.float32(RAMP / 65535), np.int32(RAMP) * 1000])
def test_pixels_of_no_known_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="no known range"):
        _decoded(tmp_path / "a.tiff")


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = _decoded(tmp_path / "red.jpg")[8, 8].tolist()
    assert red > 240
    assert max(green, blue) < 15


def test_exif_turns_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright = np.zeros((20, 40, 3), dtype=np.uint8)
    upright[:, :20] = 255
    Image.fromarray(upright).save(tmp_path / "a.png", exif=exif)
    assert (_decoded(tmp_path / "a.png") == np.rot90(upright, k=-1)).all()
