import json
import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from mgm_lora.artifacts import digest_file, digest_folder, read_manifest
from mgm_lora.data.table import read_samples
from mgm_lora.data.validation import validate
from mgm_lora.errors import DataError, SettingsError, StorageError, ValidationFailedError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("validation asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _html(dataset: Any, pattern: str = "**/*.html") -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(dataset.data_docs.glob(pattern)))


def _left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith((".part", ".old"))]


def test_a_sound_data_set_becomes_a_table(dataset: Any) -> None:
    dataset.train.append(dataset.sample("text", question_type="words"))
    dataset.known = [dataset.sample("k0", dataset.picture("k.png", seed=200))]
    summary = dataset.validate()
    assert sorted(path.name for path in dataset.table.iterdir()) == [
        "heldout.parquet",
        "known.parquet",
        "manifest.json",
        "rejects.parquet",
        "train.parquet",
    ]
    first, *_, text = read_samples(dataset.table / "train.parquet")
    assert (first.id, first.pictures, first.width, first.height) == ("t0", ("0.png",), 24, 16)
    assert (first.num_tokens, first.num_labels, first.answer) == (23, 3, "a cat")
    assert len(first.picture_sha256[0]) == 64
    assert (text.pictures, text.picture_sha256, text.width, text.question_type) == ((), (), None, "words")
    assert summary.files["train"].num_kept == 7
    assert summary.num_pictures == 10
    rejects = pd.read_parquet(dataset.table / "rejects.parquet")
    assert list(rejects.columns) == ["file", "position", "id", "checks", "reasons"]
    assert rejects.empty
    assert not _left_over(dataset.folder)


def test_samples_of_several_pictures_are_kept_with_all_of_them(dataset: Any) -> None:
    dataset.train.append(dataset.sample("two", ["0.png", "1.png"], question="<image> <image> the same?"))
    dataset.train.append(dataset.sample("one", "0.png", question="<image> <image> what?"))
    dataset.validate()
    *_, two, one = read_samples(dataset.table / "train.parquet")
    assert two.pictures == ("0.png", "1.png")
    assert two.picture_sha256 == tuple(digest_file(dataset.pictures / name) for name in two.pictures)
    assert two.turns[0].text == "<image> <image> the same?"
    assert one.turns[0].text == "<image>  what?"  # as many markers as pictures, for all that come after


def test_rejects_are_out_of_the_table_and_in_the_rejects(dataset: Any) -> None:
    dataset.train.insert(1, dataset.sample("gone", "nowhere.png"))
    dataset.heldout.append(dataset.sample("blank", dataset.picture_of("b.png", Image.new("RGB", (9, 9)))))
    summary = dataset.validate()
    assert [sample.id for sample in read_samples(dataset.table / "train.parquet")] == [f"t{n}" for n in range(6)]
    assert [sample.id for sample in read_samples(dataset.table / "heldout.parquet")] == ["h0", "h1", "h2"]
    rejects = pd.read_parquet(dataset.table / "rejects.parquet")
    assert rejects[["file", "position", "id", "checks"]].values.tolist() == [
        ["train", 1, "gone", "missing_picture"],
        ["heldout", 3, "blank", "blank_picture"],
    ]
    assert rejects.equals(dataset.rejects().astype(rejects.dtypes.to_dict()))
    train = summary.metrics()["files"]["train"]
    assert (train["num_samples"], train["num_kept"], train["num_rejects"]) == (7, 6, 1)
    assert train["rejects"]["missing_picture"] == 1
    assert "the sample is rejected" in _html(dataset)
    assert "&#39;nowhere.png&#39;: no such file" in _html(dataset, "validations/train/**/*.html")


def test_warned_of_samples_are_kept_and_counted(dataset: Any) -> None:
    dataset.train.append(dataset.sample("copy", dataset.picture("copy.png", seed=3)))
    dataset.train.append(dataset.sample("blank", dataset.picture_of("blank.png", Image.new("RGB", (9, 9)))))
    summary = dataset.validate(warn_only=("duplicate_picture", "blank_picture"))
    assert len(read_samples(dataset.table / "train.parquet")) == 8
    assert summary.files["train"].warnings == {"blank_picture": 1, "duplicate_picture": 1}
    assert summary.files["train"].num_rejects == 0
    assert dataset.rejects().empty
    assert "the sample is kept, with a warning" in _html(dataset)


def test_the_same_data_gives_the_same_table_and_other_data_another(dataset: Any) -> None:
    dataset.validate()
    first = digest_folder(dataset.table)
    dataset.validate()  # over the one that is there
    assert digest_folder(dataset.table) == first
    dataset.picture("0.png", seed=77)
    dataset.validate()
    assert digest_folder(dataset.table) != first


def test_the_manifest_tells_what_made_the_table(dataset: Any) -> None:
    summary = dataset.validate()
    manifest = read_manifest(dataset.table, kind="SampleTable")
    assert manifest.details == json.loads(json.dumps(summary.metrics()))
    assert manifest.parents["train"] == digest_file(dataset.folder / "train.json")
    assert set(manifest.parents) == {"train", "heldout", "pictures"}
    assert manifest.settings["validation"]["max_reject_share"] == 0.5


def test_leakage_stops_the_run_and_leaves_the_reasons(dataset: Any) -> None:
    dataset.train.append(dataset.sample("leak", dataset.picture("leak.png", seed=101)))
    with pytest.raises(ValidationFailedError) as caught:
        dataset.validate(max_reject_share=1.0)
    assert "'leak.png' has the same pixels as 'h1.png' of heldout" in str(caught.value)
    assert str(dataset.data_docs) in str(caught.value)
    assert not dataset.table.exists()
    assert list(dataset.rejects()["checks"]) == ["leaked_picture"]
    assert "leaked_picture" in _html(dataset, "index.html")


def test_too_many_rejects_stop_the_run_and_leave_the_reasons(dataset: Any) -> None:
    dataset.validate()
    before = digest_folder(dataset.table)
    dataset.heldout += [dataset.sample(name, "nowhere.png") for name in "xyz"]
    with pytest.raises(ValidationFailedError, match=r"heldout: 50.0% .* By reason: missing_picture 3"):
        dataset.validate(max_reject_share=0.49)
    assert list(dataset.rejects()["id"]) == ["x", "y", "z"]
    assert digest_folder(dataset.table) == before  # the last good one: no half of a new one
    assert not _left_over(dataset.folder)


def test_a_text_only_data_set_needs_no_pictures_folder(dataset: Any) -> None:
    dataset.train = [dataset.sample("t")]
    dataset.heldout = [dataset.sample("h")]
    data = dataset.settings().model_copy(update={"pictures": dataset.folder / "nowhere"})
    summary = validate(
        data,
        validation=dataset.rules(),
        measure=dataset.measure,
        destination=dataset.table,
        data_docs=dataset.data_docs,
    )
    assert summary.num_pictures == 0
    assert read_samples(dataset.table / "train.parquet")[0].pictures == ()


def test_a_missing_pictures_folder_is_one_error_not_a_thousand_rejects(dataset: Any) -> None:
    dataset.pictures.rename(dataset.folder / "elsewhere")
    with pytest.raises(DataError, match=r"no folder at data\.pictures .*pictures"):
        dataset.validate()


def test_wrong_settings_and_files_are_told_before_anything_is_written(dataset: Any) -> None:
    with pytest.raises(SettingsError, match="no check is called typo"):
        dataset.validate(warn_only=("typo",))
    dataset.heldout = [1, 2]
    with pytest.raises(DataError, match=r"heldout\.json' has 2 problems"):
        dataset.validate()
    assert not dataset.data_docs.exists()
    assert not dataset.table.exists()


def test_the_pages_need_no_network_and_take_names_for_text(dataset: Any) -> None:
    name = "<img src=x onerror=alert(1)> $HOME ${x}.png"
    dataset.train.append(dataset.sample("<b>x</b>", dataset.picture_of(name, Image.new("RGB", (9, 9)))))
    dataset.validate()
    html = _html(dataset)
    for outside in ("://", 'src="', "<script", '<link rel="stylesheet', "@import", "url("):
        assert outside not in html
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt; $HOME ${x}.png" in html


def test_every_link_of_the_pages_leads_to_a_file_and_they_count_the_same(dataset: Any) -> None:
    dataset.train += [dataset.sample(f"x{number}", answer="") for number in range(3)]
    dataset.validate()
    assert '<td class="number some">3</td>' in _html(dataset, "index.html")
    validation = re.sub(r"<[^>]+>", " ", _html(dataset, "validations/train/**/*.html"))
    assert "3 unexpected values found" in " ".join(validation.split())
    pages = sorted(dataset.data_docs.rglob("*.html"))
    assert len(pages) == 5  # the index; a suite and a validation per file
    others = [path.name for path in dataset.data_docs.rglob("*") if path.is_file() and path not in pages]
    assert others == ["rejects.csv"]  # not the megabytes that Great Expectations lays beside them
    for page in pages:
        for link in _links(page):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"
    assert {"train", "heldout"} <= {Path(link).stem for page in pages for link in _links(page)}


def _links(page: Path) -> list[str]:
    links = re.findall(r'href="([^"]+)"', page.read_text(encoding="utf-8"))
    return [link for link in links if not link.startswith(("#", "data:"))]


def test_a_path_with_a_dollar_sign_is_a_path(dataset: Any) -> None:
    dataset.folder = dataset.folder / "$HOME ${x}"
    dataset.folder.mkdir()
    dataset.__post_init__()
    dataset.train, dataset.heldout = dataset.train[6:], dataset.heldout[3:]
    dataset.validate()
    assert (dataset.data_docs / "index.html").is_file()


def test_it_is_quiet_and_leaves_nothing_behind(
    dataset: Any, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    empty = dataset.folder / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("TMPDIR", str(empty))
    dataset.validate()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("limit, output", [(4_000, "docs"), (3_000_000, "samples")])
def test_where_a_file_cannot_be_written_one_error_says_so(dataset: Any, limit: int, output: str) -> None:
    answers = [os.urandom(1000).hex() for _ in range(2500)]  # a table of 5 MB; the pages' files are smaller than 3
    dataset.train += [dataset.sample(f"long {number}", answer=answer) for number, answer in enumerate(answers)]
    with pytest.raises(StorageError, match=f"can't write '.*{output}': File too large"), _largest_file(dataset, limit):
        dataset.validate()
    assert not (dataset.folder / output).exists()
    assert not _left_over(dataset.folder)


@contextmanager
def _largest_file(dataset: Any, limit: int) -> Iterator[None]:
    """The kernel lets no larger file be written, as if the disk were full."""
    data = dataset.settings()
    dataset.settings = lambda: data  # its files are written before
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
