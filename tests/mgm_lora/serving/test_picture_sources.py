"""Where a picture may come from, and what of it is decoded how."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgm_lora.errors import RefusedError
from mgm_lora.model.pictures import open_picture
from mgm_lora.serving.limits import ServingLimits
from mgm_lora.serving.picture_sources import decode_picture, picture_bytes

LIMITS = ServingLimits(max_picture_bytes=100_000, max_pixels=10_000)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(content: bytes, tmp_path: Path) -> tuple[int, str]:
    with pytest.raises(RefusedError) as told:
        decode_picture(content, file=tmp_path / "0.ppm", limits=LIMITS)
    return told.value.status, str(told.value)


def _noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def _on_its_side() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(_noise(), "JPEG", exif=exif)


def _moving() -> bytes:
    return saved(_noise(), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), "red")])


def _16_bits() -> bytes:
    values = np.random.default_rng(1).integers(0, 2**16, (30, 40), dtype=np.uint16)
    return saved(Image.fromarray(values), "PNG")


def _with_size(png: bytes, side: int) -> bytes:
    """A PNG that says that it is so large."""
    head = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: saved(_noise(), "PNG"),
        lambda: saved(_noise("P"), "PNG"),
        lambda: saved(_noise("CMYK"), "JPEG"),
        lambda: saved(_noise("RGBA"), "WEBP"),
        lambda: saved(_noise("L"), "TIFF"),
        lambda: saved(_noise("1"), "BMP"),
        _on_its_side,
        _moving,
        _16_bits,
    ],
    ids=["png", "palette", "cmyk", "webp", "tiff", "bmp", "exif", "moving", "16 bits"],
)
def test_decoded_picture_is_the_one_that_training_sees(make: Callable[[], bytes], tmp_path: Path) -> None:
    content = make()
    (tmp_path / "sent").write_bytes(content)
    decode_picture(content, file=tmp_path / "0.ppm", limits=LIMITS)
    seen, expected = open_picture(tmp_path / "0.ppm"), open_picture(tmp_path / "sent")
    assert seen.size == expected.size
    assert seen.tobytes() == expected.tobytes()


def test_what_is_no_picture_broken_or_too_large_is_told_apart(tmp_path: Path) -> None:
    png = saved(_noise(), "PNG")
    assert refused(b"<svg xmlns='...'/>", tmp_path)[0] == 415
    assert refused(saved(_noise(), "EPS"), tmp_path)[0] == 415  # PIL would run a program for it
    assert refused(b"", tmp_path)[0] == 415
    assert refused(png[: len(png) // 2], tmp_path) == (422, "the picture can't be decoded: image file is truncated")
    assert refused(saved(_noise(size=(101, 100)), "PNG"), tmp_path)[0] == 413
    assert refused(_with_size(png, 20_000), tmp_path)[0] == 413  # PIL's own bound
    assert refused(saved(Image.new("F", (4, 4)), "TIFF"), tmp_path)[0] == 422


def test_file_is_read_below_the_folder_only(tmp_path: Path) -> None:
    folder, outside = tmp_path / "pictures", tmp_path / "secret.txt"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(b"one")
    outside.write_bytes(b"secret")
    (folder / "out.png").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    (folder / "in.png").symlink_to("a/1.png")
    limits = ServingLimits(pictures=folder)
    for name in ("a/1.png", "in.png", str(folder / "a/1.png"), "a/../in.png"):
        assert picture_bytes(name, limits=limits) == b"one"
    for name in ("out.png", "up/secret.txt", "../secret.txt", str(outside), "../nothing.png", "a/../../secret.txt"):
        with pytest.raises(RefusedError, match="leads out of the folder") as told:
            picture_bytes(name, limits=limits)
        assert told.value.status == 403
    for name in ("a", "none.png", "nul\0.png"):
        with pytest.raises(RefusedError, match="neither base64") as told:
            picture_bytes(name, limits=limits)
        assert told.value.status == 422


def test_no_folder_means_no_path(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"one")
    with pytest.raises(RefusedError, match="this server reads none") as told:
        picture_bytes(str(tmp_path / "1.png"), limits=LIMITS)
    assert told.value.status == 403


def test_base64_that_begins_as_a_path_does_is_base64(tmp_path: Path) -> None:
    jpeg = saved(_noise(), "JPEG")
    text = base64.b64encode(jpeg).decode()
    assert text.startswith("/")
    for limits in (LIMITS, ServingLimits(pictures=tmp_path)):
        assert picture_bytes(text, limits=limits) == jpeg
        assert picture_bytes(f"data:image/jpeg;base64,{text}", limits=limits) == jpeg


@pytest.mark.parametrize("pictures", [None, Path()])
def test_large_file_is_refused_however_it_comes(pictures: Path | None, tmp_path: Path) -> None:
    limits = ServingLimits(max_picture_bytes=999, pictures=tmp_path if pictures else None)
    (tmp_path / "large.png").write_bytes(b"x" * 1000)
    text = base64.b64encode(b"x" * 1000).decode()
    ways: list[str | bytes] = [b"x" * 1000, text, f"data:image/png;base64,{text}", "/" * 10_000_000]
    for value in [*ways, "large.png"] if pictures else ways:
        with pytest.raises(RefusedError, match="larger than 999 bytes") as told:
            picture_bytes(value, limits=limits)
        assert told.value.status == 413
