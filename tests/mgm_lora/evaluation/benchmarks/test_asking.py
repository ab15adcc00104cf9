"""The journal of answers: what is there is kept, what was cut is asked again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import PictureError
from mgm_lora.evaluation.benchmarks.asking import AnswerJournal, prepare_questions
from mgm_lora.evaluation.benchmarks.textvqa import TextVqa
from mgm_lora.model.processor import MGMProcessor


def test_a_line_that_was_cut_is_cut_off(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path / "new/answers.jsonl")
    assert journal.read() == {}
    journal.append("1", 'a "line"\nand more – ü')
    journal.append("2", "cut")
    path = tmp_path / "new/answers.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[1]) + 1):
        path.write_bytes(whole[:-cut])
        assert journal.read() == {"1": 'a "line"\nand more – ü'}
        journal.append("2", "whole")
        assert journal.read()["2"] == "whole"


def test_pictures_that_are_not_there_are_named(
    bench: Callable[..., Any],
    textvqa_file: Callable[..., Path],
    make_picture: Callable[..., Path],
    tmp_path: Path,
    tiny_base: Path,
) -> None:
    questions = bench(TextVqa(), textvqa_file()).reading.questions
    make_picture(1).rename(tmp_path / "003a.jpg")
    with pytest.raises(PictureError, match=r"1 of 2 pictures are not there \(.*ff01\.jpg\): is --pictures right\?"):
        prepare_questions(questions, processor=MGMProcessor.from_pretrained(tiny_base))
