"""`mgm-lora import` as people type it, on a tiny base, in an empty project."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mgm_lora.settings import read_settings
from mgm_lora.stages.import_data import name_of, rewrite_params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, make_picture: Callable[..., Path]) -> Path:
    """With a CSV of six pictures, and settings with comments."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("model: data/base", f"model: {tiny_base}")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    rows = [f"{make_picture(number, folder=tmp_path / 'photos').name},breed {number}" for number in range(6)]
    (tmp_path / "My Cats.csv").write_text("\n".join(["file_name,breed", *rows]), encoding="utf-8")
    return tmp_path


def _import(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mgm_lora", "import", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_own_data_is_imported_and_the_next_steps_are_told(project: Path) -> None:
    answers = ("--answer-column", "breed", "--question", "Which breed?", "--pictures", "photos")
    before = (project / "params.yaml").read_text(encoding="utf-8")
    done = _import(project, "My Cats.csv", *answers, "--heldout-share", "0.3")
    assert done.returncode == 0, done.stderr
    for told in (
        "columns guessed or given: pictures: file_name; answer: breed",
        "every picture is asked: 'Which breed?'",
        "6 samples, 6 pictures",
        "train: data/instructions/My-Cats-train.json",
        "known: null",  # the demo's own file isn't here
        "dvc add data",
        "reports/import-My-Cats.png",
    ):
        assert told in done.stdout
    assert (project / "reports/import-My-Cats.png").is_file()
    assert (project / "reports/import-My-Cats/index.html").is_file()
    assert (project / "params.yaml").read_text(encoding="utf-8") == before

    again = _import(project, "My Cats.csv", *answers)
    assert again.returncode == 2
    assert "--force to replace" in again.stderr

    written = _import(project, "My Cats.csv", *answers, "--force", "--write-params")
    assert written.returncode == 0, written.stderr
    settings = read_settings(project / "params.yaml")
    assert settings.data.train == Path("data/instructions/My-Cats-train.json")
    assert settings.evaluation.score_types == ()
    assert "# Every setting that changes a result." in (project / "params.yaml").read_text(encoding="utf-8")


def test_mistakes_end_with_their_exit_codes(project: Path) -> None:
    missing = _import(project, "My Cats.csv", "--picture-column", "photo", "--answer-column", "breed")
    assert missing.returncode == 2
    assert "there is no column 'photo'" in missing.stderr
    rejected = _import(project, "My Cats.csv", "--answer-column", "breed")  # the pictures lie in photos
    assert rejected.returncode == 3
    assert "missing_picture" in rejected.stderr
    assert not list((project / "data").glob("*"))


def test_a_long_data_set_is_told_what_length_it_needs(project: Path) -> None:
    text = (project / "My Cats.csv").read_text(encoding="utf-8").replace("breed 3", "breed " * 30)
    (project / "My Cats.csv").write_text(text, encoding="utf-8")
    done = _import(project, "My Cats.csv", "--answer-column", "breed", "--pictures", "photos", "--anyway")
    assert done.returncode == 0, done.stderr
    assert "1 are longer" in done.stdout
    assert "`dvc repro` will stop" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "max_length:" in line)
    assert int(line.split(":")[1]) > 180  # letters are tokens here


def test_only_the_entries_that_change_are_rewritten(project: Path) -> None:
    path = project / "params.yaml"
    before = path.read_text(encoding="utf-8").splitlines()
    rewrite_params(path, changes={"data": {"max_length": 2048}, "evaluation": {"max_new_tokens": 64}})
    after = path.read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in set(after) - set(before)] in (
        ["max_length: 2048", "max_new_tokens: 64"],
        ["max_new_tokens: 64", "max_length: 2048"],
    )
    assert len(after) == len(before)


@pytest.mark.parametrize("path, name", [("a/My Cats!.csv", "My-Cats"), ("a/b.tar.json", "b-tar"), ("…", "data")])
def test_names_are_of_plain_letters(path: str, name: str) -> None:
    assert name_of(Path(path)) == name
