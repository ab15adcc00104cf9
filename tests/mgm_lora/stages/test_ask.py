"""`mgm-lora ask`: one question or a conversation, about one picture, several or none; bad input is told before any weight is read."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from mgm_lora.errors import DataError, PictureError
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import Settings, read_settings
from mgm_lora.stages import ask

from ...conftest import ROOT
from ..model.talkative import make_talkative


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's root: a base that sees in high definition, and its settings."""
    folder = tmp_path_factory.mktemp("project")
    model, processor = make_talkative(tiny_base, grid=2)
    save_model(model.float(), folder=folder / "base")
    processor.save_pretrained(folder / "base")
    entries = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    entries["base"] |= {"model": str(folder / "base"), "dtype": "float32"}
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(entries, file)
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return read_settings(folder / "params.yaml")


@pytest.fixture
def pictures(make_picture: Callable[..., Path]) -> list[Path]:
    return [make_picture(number) for number in range(2)]


def shown(settings: Settings, pictures: list[Path], question: str | None) -> str:
    pieces: list[str] = []
    ask.run(settings, pictures=pictures, question=question, adapter=None, max_new_tokens=8, show=pieces.append)
    assert len(pieces) > 2
    return "".join(pieces)


def expected(settings: Settings, pictures: list[Path], *turns: tuple[str, str]) -> str:
    base = Path(settings.base.model)
    processor = MGMProcessor.from_pretrained(base)
    model = load_model(base, dtype=torch.float32)
    question = Question(turns, tuple(pictures))
    [answer] = answer_questions(model, processor=processor, questions=[question], batch_size=1, max_new_tokens=8)
    return answer


@pytest.mark.parametrize("num_pictures", [0, 1, 2])
def test_one_question_about_any_number_of_pictures(num_pictures: int, settings: Settings, pictures: list[Path]) -> None:
    told = shown(settings, pictures[:num_pictures], "what?")
    answer = expected(settings, pictures[:num_pictures], ("human", "<image>\n" * num_pictures + "what?"))
    assert told == answer + "\n"


def test_without_a_question_every_line_is_one_until_an_empty_line(
    settings: Settings, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?\nand <image>?\nwhy?\n\nnever asked\n"))
    first, second = shown(settings, pictures, None).splitlines()
    turns = (("human", "<image>\n<image>\nwhat?"), ("gpt", first), ("human", "why?"))
    assert first == expected(settings, pictures, turns[0])
    assert second == expected(settings, pictures, *turns)
    assert "all 2 pictures were shown with the first one" in capsys.readouterr().err
    assert sys.stdin.readline() == "never asked\n"


def test_bad_input_is_told_before_any_weight_is_read(
    settings: Settings, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes.png"
    notes.write_text("dear diary")
    monkeypatch.setattr(ask, "find_base", None)
    with pytest.raises(PictureError, match="is no picture"):
        shown(settings, [notes], "what?")
    with pytest.raises(DataError, match="the question is empty"):
        shown(settings, pictures, " ")
    with pytest.raises(DataError, match=r"hold 3 <image>.*for 2 pictures"):
        shown(settings, pictures, "<image> <image> <image> what?")


def test_command_line_takes_more_pictures_none_and_lines(
    folder: Path, settings: Settings, pictures: list[Path]
) -> None:
    def run(*arguments: str, typed: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mgm_lora", "ask", *arguments, "--max-new-tokens", "8"],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
            input=typed,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    both = expected(settings, pictures, ("human", "<image>\n<image>\nwhat?"))
    assert run(str(pictures[0]), "what?", "--and", str(pictures[1])) == both + "\n"
    assert run("-", typed="what?\n") == expected(settings, [], ("human", "what?")) + "\n"
