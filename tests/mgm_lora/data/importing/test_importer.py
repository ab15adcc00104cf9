import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgm_lora.artifacts import digest_folder
from mgm_lora.data.importing import importer
from mgm_lora.errors import DataError, ValidationFailedError


def _bomb(path: Path) -> None:
    """A PNG of 172 bytes whose header promises 2 billion pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (2**31 - 1).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def _noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8))


def _animated(path: Path) -> None:
    _noise(1).save(path, save_all=True, append_images=[_noise(2)])


def _cut(path: Path) -> None:
    _noise(3).save(path)
    path.write_bytes(path.read_bytes()[:200])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "bomb.png": (_bomb, "wrong_picture_size"),
    "moving.gif": (_animated, "animated_picture"),
    "moving.webp": (_animated, "animated_picture"),
    "moving.png": (_animated, "animated_picture"),
    "empty.png": (lambda path: path.touch(), "broken_picture"),
    "cut.png": (_cut, "broken_picture"),
    "text.jpg": (lambda path: path.write_text("I am no picture"), "broken_picture"),
    "missing.png": (lambda path: None, "missing_picture"),
}
ODD: dict[str, Callable[[Path], object]] = {
    "cmyk.jpg": lambda path: _noise(4).convert("CMYK").save(path),
    "wide.png": lambda path: Image.fromarray(
        np.random.default_rng(5).integers(0, 2**16, (16, 24), dtype=np.uint16)
    ).save(path),
    "turned.jpg": lambda path: _noise(6).save(path, exif=_turned()),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_bad_pictures_are_rejected_by_their_reason_and_odd_ones_are_read(project: Any) -> None:
    for name, (make, _) in BAD.items():
        make(project.source / name)
    for name, make_odd in ODD.items():
        make_odd(project.source / name)
    lines = [f"{name},what?,x" for name in (*BAD, *ODD)]
    imported = project.run(project.csv(*lines), anyway=True)
    rejects = imported.examined.rejects
    entries = {entry["id"]: entry["image"] for entry in project.entries()}
    found = {entries[row["id"]].removeprefix("own/"): row["checks"] for row in rejects.to_dict("records")}
    assert found == {name: check for name, (_, check) in BAD.items()}
    assert imported.examined.facts["own/turned.jpg"].width == 16
    assert project.places.contact_sheet.is_file()


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "/etc/passwd", ".."])
def test_a_name_that_climbs_out_stops_the_import(project: Any, name: str) -> None:
    project.picture("secret.png", folder=project.folder)
    with pytest.raises(DataError, match=r"line 3: .* climbs out of the picture folder"):
        project.run(project.csv(f"{project.picture('a.png')},what?,x", f"{name},what?,x"))
    assert project.files() == []


def test_a_link_that_leads_out_stops_the_import_and_one_that_stays_is_followed(project: Any) -> None:
    (project.source / "inside.png").symlink_to(project.source / project.picture("a.png"))
    lines = ["inside.png,what?,x", f"{project.picture('b.png')},what?,x"]
    project.run(project.csv(*lines))
    assert not (project.places.pictures / "own/inside.png").is_symlink()
    (project.source / "outside.png").symlink_to(project.folder / project.picture("secret.png", folder=project.folder))
    with pytest.raises(DataError, match="is a link that leads out"):
        project.run(project.csv(*lines, "outside.png,what?,x"), name="other")


def test_an_absolute_name_inside_the_folder_is_taken(project: Any) -> None:
    lines = [f"{project.source / project.picture(name)},what?,x" for name in ("a.png", "b.png")]
    project.run(project.csv(*lines), pictures=project.source)
    assert [entry["image"] for entry in project.entries()] == ["own/a.png", "own/b.png"]


@pytest.mark.parametrize("link", [True, False])
def test_pictures_are_copied_or_linked(project: Any, two_pictures: Any, link: bool) -> None:
    project.run(two_pictures(), link=link)
    assert os.path.samefile(project.places.pictures / "own/a.png", project.source / "a.png") is link
    assert (project.places.pictures / "own/a.png").read_bytes() == (project.source / "a.png").read_bytes()


def test_the_same_pixels_are_never_on_both_sides(project: Any) -> None:
    lines = []
    for number in range(30):
        name = project.picture(f"{number}.png", seed=number)
        Image.open(project.source / name).save(project.source / f"{number}.bmp")
        lines += [f"{name},what?,x", f"{number}.bmp,what?,x", f"./{name},who?,y"]
    imported = project.run(project.csv(*lines), heldout_share=0.2)
    sides = {}
    for file in ("train", "heldout"):
        for entry in project.entries(file):
            sides.setdefault(Path(entry["image"]).stem, set()).add(file)
    assert all(len(files) == 1 for files in sides.values())
    assert imported.overview.num_samples == {"train": 72, "heldout": 18}
    assert imported.examined.summary.files["train"].rejects["leaked_picture"] == 0


def test_samples_that_share_one_of_several_pictures_stay_together(project: Any) -> None:
    for number in range(21):
        project.picture(f"{number}.png", seed=number)
    entries = [
        {
            "image": [f"{n}.png", f"{n + 1}.png"],
            "conversations": [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "x"}],
        }
        for n in range(20)
        if n % 5 != 4
    ]
    project.run(project.text("a.json", json.dumps(entries)), heldout_share=0.25)
    seen = {file: {name for entry in project.entries(file) for name in entry["image"]} for file in ("train", "heldout")}
    assert seen["train"]
    assert seen["heldout"]
    assert not seen["train"] & seen["heldout"]


def test_the_split_follows_from_the_seed(project: Any) -> None:
    path = project.csv(*(f"{project.picture(f'{n}.png')},what?,x" for n in range(20)))
    heldout = []
    for seed in (1, 1, 2):
        project.run(path, seed=seed, force=True)
        heldout.append([entry["image"] for entry in project.entries("heldout")])
    assert heldout[0] == heldout[1] != heldout[2]


def test_one_picture_alone_cannot_be_split(project: Any) -> None:
    with pytest.raises(DataError, match="none can be held out"):
        project.run(project.csv(f"{project.picture('a.png')},what?,x", "a.png,who?,y"))
    assert project.files() == []


def test_a_name_that_is_taken_is_kept_unless_forced(project: Any, two_pictures: Any) -> None:
    path = two_pictures()
    project.run(path)
    before = digest_folder(project.places.data)
    with pytest.raises(DataError, match="take another --name, or --force to replace"):
        project.run(path)
    assert digest_folder(project.places.data) == before
    project.run(project.csv(f"{project.picture('c.png')},what?,x", "b.png,who?,y"), force=True)
    assert project.files() == [
        "instructions/own-heldout.json",
        "instructions/own-train.json",
        "pictures/own/b.png",
        "pictures/own/c.png",
    ]


def test_other_data_stays_as_it_was(project: Any, two_pictures: Any) -> None:
    (project.places.data / "pictures/other").mkdir(parents=True)
    (project.places.data / "pictures/other/x.png").write_bytes(b"mine")
    project.run(two_pictures())
    assert (project.places.data / "pictures/other/x.png").read_bytes() == b"mine"


def test_too_many_rejects_stop_it_and_leave_pages_and_data_as_it_was(project: Any, two_pictures: Any) -> None:
    project.run(two_pictures())
    before = digest_folder(project.places.data)
    path = project.csv(f"{project.picture('c.png')},what?,x", "b.png,who?,y", "nowhere.png,what?,z")
    with pytest.raises(ValidationFailedError, match=r"missing_picture 1[\s\S]*Nothing was imported"):
        project.run(path, rules={"max_reject_share": 0.1}, force=True)
    assert digest_folder(project.places.data) == before
    assert "nowhere.png" in (project.places.data_docs / "rejects.csv").read_text(encoding="utf-8")
    assert ".part" not in (project.places.data_docs / "rejects.csv").read_text(encoding="utf-8")
    imported = project.run(path, rules={"max_reject_share": 0.1}, force=True, anyway=True)
    assert len(imported.failures) == 1


@pytest.mark.parametrize("step", ["_scan", "_split", "examine", "draw_contact_sheet"])
def test_an_interruption_leaves_the_data_as_it_was(
    project: Any, two_pictures: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = two_pictures()
    project.run(path)
    before = digest_folder(project.places.data)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importer, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        project.run(path, force=True)
    assert digest_folder(project.places.data) == before
    assert not list(project.places.data.glob(".import*"))


def test_the_overview_counts_answers_and_shows_some(project: Any) -> None:
    path = project.csv(*(f"{project.picture(f'{n}.png')},what?,{'cat' if n % 3 else 'dog'}" for n in range(40)))
    overview = project.run(path).overview
    assert overview.answers == {"cat": 26, "dog": 14}
    assert len(overview.shown) == 24
    with Image.open(project.places.contact_sheet) as sheet:
        assert sheet.width > 1000
        assert np.asarray(sheet.convert("L")).std() > 20
