"""GQA: balanced questions, exact match, by structure and meaning."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.gqa import Gqa

Make = Callable[..., Any]
ANSWERS = {"201307251": "No.", "201640614": "the woman", "202225914": "Yes"}


def test_accuracy_by_hand(bench: Make, gqa_file: Make) -> None:
    values = bench(Gqa(), gqa_file()).values(ANSWERS)
    assert values["all", "accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert values["answer: binary", "accuracy"] == 1.0
    assert values["answer: open", "accuracy"] == 0.0  # an article is not taken off
    assert values["meaning: rel", "accuracy"] == 0.0
    assert values["structure: verify", "accuracy"] == 1.0


def test_unbalanced_questions_are_counted_and_left_out(bench: Make, gqa_file: Make, write_json: Make) -> None:
    gqa = bench(Gqa(), gqa_file())
    assert gqa.ids() == list(ANSWERS)
    assert "1 unbalanced questions are not asked: accuracy is of the balanced ones" in gqa.reading.notes
    assert any(note.startswith("consistency") for note in gqa.reading.notes)
    answers = [{"questionId": name, "prediction": text} for name, text in {**ANSWERS, "203": "yes"}.items()]
    assert gqa.found(write_json("all.json", answers)) == ANSWERS


def test_submission(bench: Make, gqa_file: Make, tmp_path: Path) -> None:
    gqa = bench(Gqa(), gqa_file())
    [path] = gqa.submitted(ANSWERS, tmp_path / "out")
    assert json.loads(path.read_text())[0] == {"questionId": "201307251", "prediction": "no"}
    assert gqa.values(gqa.found(path)) == gqa.values(ANSWERS)


def test_another_shape_is_told(bench: Make, gqa_file: Make, write_json: Make) -> None:
    with pytest.raises(BenchmarkFileError, match=r"expected GQA's questions by id.*found a list of 1"):
        bench(Gqa(), write_json("list.json", [1]))
    with pytest.raises(BenchmarkFileError, match=r"1 of 5 entries of another form \(x: question: Field required\)"):
        bench(Gqa(), gqa_file(x={"imageId": "1", "isBalanced": True}))
