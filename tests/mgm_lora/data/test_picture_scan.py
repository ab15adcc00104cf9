import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgm_lora.data.picture_facts import FactStore, PictureFacts
from mgm_lora.data.picture_scan import scan_store
from mgm_lora.data.structure import FINE


def _scan(folder: Path, *names: str, max_pixels: int = 10_000, num_workers: int = 2) -> list[PictureFacts]:
    facts = _store(folder, *names, max_pixels=max_pixels, num_workers=num_workers)
    return [facts[name] for name in names]


def _store(folder: Path, *names: str, max_pixels: int = 10_000, num_workers: int = 2) -> FactStore:
    facts = FactStore()
    facts.add_names(names)
    scan_store(facts, folder=folder, min_side=8, max_pixels=max_pixels, num_workers=num_workers)
    return facts


def _noise(width: int = 24, height: int = 16, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _png(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_sound_picture(tmp_path: Path) -> None:
    _noise(24, 16).save(tmp_path / "a.png")
    (facts,) = _scan(tmp_path, "a.png")
    assert (facts.missing, facts.wrong_size, facts.broken, facts.blank) == (FINE, FINE, FINE, FINE)
    assert (facts.width, facts.height) == (24, 16)


def test_the_digest_is_of_pixels_not_of_bytes(tmp_path: Path) -> None:
    _noise(seed=1).save(tmp_path / "a.png")
    _noise(seed=1).save(tmp_path / "b.bmp")
    _noise(seed=2).save(tmp_path / "c.png")
    a, b, c = _scan(tmp_path, "a.png", "b.bmp", "c.png")
    assert a.pixels == b.pixels
    assert a.pixels != c.pixels
    assert a.sha256 != b.sha256


def test_the_digest_knows_the_shape(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 16 * 24 * 3, dtype=np.uint8)
    Image.fromarray(pixels.reshape(16, 24, 3)).save(tmp_path / "wide.png")
    Image.fromarray(pixels.reshape(24, 16, 3)).save(tmp_path / "high.png")
    wide, high = _scan(tmp_path, "wide.png", "high.png")
    assert wide.pixels != high.pixels


def test_exif_turns_a_picture_as_the_model_sees_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    _noise(24, 16).save(tmp_path / "turned.png", exif=exif)
    _noise(24, 16).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "straight.png")
    turned, straight = _scan(tmp_path, "turned.png", "straight.png")
    assert (turned.width, turned.height) == (16, 24)
    assert turned.pixels == straight.pixels


@pytest.mark.parametrize("name", ["nowhere.png", "folder", "a" * 300 + ".png", "null\0byte.png"])
def test_what_is_no_file_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (facts,) = _scan(tmp_path, name)
    assert facts.missing != FINE
    assert facts.broken is None


@pytest.mark.parametrize("name", ["../a.png", "folder/../../a.png", "..", "", "."])
def test_a_name_that_climbs_out_is_missing(tmp_path: Path, name: str) -> None:
    _noise().save(tmp_path / "a.png")
    (tmp_path / "pictures/folder").mkdir(parents=True)
    (facts,) = _scan(tmp_path / "pictures", name)
    assert "inside the pictures folder" in facts.missing


def test_an_absolute_name_is_missing_even_where_the_file_is_inside(tmp_path: Path) -> None:
    _noise().save(tmp_path / "a.png")
    (facts,) = _scan(tmp_path, str(tmp_path / "a.png"))
    assert "absolute" in facts.missing


def test_links_into_a_cache_elsewhere_are_followed(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    _noise().save(tmp_path / "cached.png")
    (tmp_path / "pictures/a.png").symlink_to(tmp_path / "cached.png")
    (facts,) = _scan(tmp_path / "pictures", "a.png")
    assert facts.missing == FINE
    assert facts.sha256


def test_what_cannot_be_decoded_is_broken(tmp_path: Path) -> None:
    whole = io.BytesIO()
    _noise(64, 64).save(whole, format="PNG")
    (tmp_path / "text.png").write_text("I am no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "hollow.png").write_bytes(_png(20, 20))
    _noise().save(tmp_path / "program.eps")  # would start Ghostscript
    text, empty, cut, hollow, program = _scan(tmp_path, "text.png", "empty.png", "cut.png", "hollow.png", "program.eps")
    assert "starts with b'I am no picture'" in str(text.broken)
    assert "an empty file" in str(empty.broken)
    assert "can't be decoded" in str(cut.broken)
    assert "can't be decoded" in str(hollow.broken)
    assert "none of PNG, JPEG" in str(program.broken)
    assert not any(facts.sha256 for facts in (text, empty, cut, hollow, program))


def test_sizes_are_judged_by_the_header_before_anything_is_decoded(tmp_path: Path) -> None:
    _noise(24, 7).save(tmp_path / "small.png")
    (tmp_path / "large.png").write_bytes(_png(101, 100))
    (tmp_path / "bomb.png").write_bytes(_png(2**31 - 1, 2**31 - 1))
    small, large, bomb = _scan(tmp_path, "small.png", "large.png", "bomb.png")
    assert small.wrong_size == "24 x 7 pixels, allowed are sides from 8"
    assert large.wrong_size == "101 x 100 pixels, allowed are 10000 in all"
    assert "allowed are 10000 in all" in str(bomb.wrong_size)
    assert large.broken is None


def test_the_settings_limit_stands_in_for_pils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _noise(40, 40).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (facts,) = _scan(tmp_path, "a.png")
    assert facts.sha256
    assert Image.MAX_IMAGE_PIXELS == 100  # and comes back


def test_one_colour_is_blank_and_two_are_not(tmp_path: Path) -> None:
    one = Image.new("RGB", (24, 16), (7, 8, 9))
    one.save(tmp_path / "one.png")
    one.putpixel((3, 3), (7, 8, 10))
    one.save(tmp_path / "two.png")
    blank, shows = _scan(tmp_path, "one.png", "two.png")
    assert blank.blank == "every pixel has the colour (7, 8, 9)"
    assert shows.blank == FINE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.filterwarnings("error")
def test_every_kind_of_pixel_is_read(tmp_path: Path, mode: str) -> None:
    picture = _noise().convert("L").convert("I;16") if mode == "I;16" else _noise().convert(mode)
    picture.save(tmp_path / "a.tiff")
    (facts,) = _scan(tmp_path, "a.tiff")
    assert facts.sha256


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_any_number_of_workers_finds_the_same_and_each_name_is_looked_at_once(tmp_path: Path, num_workers: int) -> None:
    for number in range(20):
        _noise(seed=number).save(tmp_path / f"{number}.png")
    names = [f"{number % 20}.png" for number in range(60)]
    facts = _store(tmp_path, *names, num_workers=num_workers)
    assert list(facts) == names[:20]
    assert len({fact.sha256 for fact in facts.values()}) == len({fact.pixels for fact in facts.values()}) == 20


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_what_moves_is_told(tmp_path: Path, name: str) -> None:
    _noise(seed=1).save(tmp_path / name, save_all=True, append_images=[_noise(seed=2), _noise(seed=3)])
    _noise(seed=1).save(tmp_path / f"still-{name}")
    moving, still = _scan(tmp_path, name, f"still-{name}")
    assert "of which a model would see the first alone" in str(moving.animated)
    assert still.animated == FINE
    assert moving.broken == FINE  # so that it can be taken, with a warning


def test_a_phones_preview_is_no_second_frame(tmp_path: Path) -> None:
    _noise(seed=1).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[_noise(seed=2)])
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "MPO"
        assert picture.is_animated
    (facts,) = _scan(tmp_path, "a.jpg")
    assert (facts.animated, facts.broken) == (FINE, FINE)


def test_pixels_between_the_points_that_are_looked_at_tell_two_pictures_apart(tmp_path: Path) -> None:
    one = _noise(640, 480, seed=1)
    other = one.copy()
    other.putpixel((1, 1), (0, 0, 0))
    one.save(tmp_path / "one.png")
    other.save(tmp_path / "other.png")
    one.save(tmp_path / "copy.bmp")
    (tmp_path / "same.png").write_bytes((tmp_path / "one.png").read_bytes())
    names = ("one.png", "other.png", "copy.bmp", "same.png")
    first, second, third, fourth = _scan(tmp_path, *names, max_pixels=10**6)
    assert first.pixels == third.pixels == fourth.pixels
    assert first.pixels != second.pixels


def test_a_picture_of_one_colour_but_for_a_pixel_is_not_blank(tmp_path: Path) -> None:
    picture = Image.new("RGB", (640, 480), (7, 8, 9))
    picture.putpixel((1, 1), (9, 8, 7))
    picture.save(tmp_path / "a.png")
    (facts,) = _scan(tmp_path, "a.png", max_pixels=10**6)
    assert facts.blank == FINE
