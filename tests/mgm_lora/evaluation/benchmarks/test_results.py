"""The folder of a result, and what the terminal shows of it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.artifacts import read_manifest
from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.gqa import Gqa
from mgm_lora.evaluation.benchmarks.mme import Mme
from mgm_lora.evaluation.benchmarks.results import BenchmarkScores, Provenance, has_truths, limited, write_results
from mgm_lora.evaluation.benchmarks.table import print_scores
from mgm_lora.evaluation.benchmarks.vqav2 import VqaV2

Make = Callable[..., Any]


def written(bench: Any, answers: dict[str, str], destination: Path, limit: int | None = None) -> BenchmarkScores:
    return write_results(
        answers,
        benchmark=bench.benchmark,
        reading=limited(bench.reading, limit),
        model="lora-17",
        limit=limit,
        evaluation=bench.evaluation,
        provenance=Provenance(parents={"model": "ab"}, base={"model": "data/base"}, details={"max_new_tokens": 4}),
        destination=destination,
    )


def shown(scores: BenchmarkScores) -> str:
    file = io.StringIO()
    print_scores(scores, title="MME", file=file)
    return file.getvalue()


def test_folder_holds_answers_scores_submission_and_manifest(bench: Make, mme_folder: Make, tmp_path: Path) -> None:
    mme = bench(Mme(), mme_folder())
    answers = dict.fromkeys(mme.ids(), "yes")
    scores = written(mme, answers, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out", kind="BenchmarkScores")
    assert manifest.details == {"benchmark": "mme", "limit": None, "max_new_tokens": 4}
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert rows[1]["id"] == "existence/0000.jpg#2"
    assert rows[1]["truths"] == ["no"]
    assert rows[1]["score"] == 0.0
    assert BenchmarkScores.model_validate_json((tmp_path / "out/scores.json").read_text()) == scores
    assert (tmp_path / "out/results/OCR.txt").is_file()
    assert mme.found(tmp_path / "out/predictions.jsonl") == answers


def test_same_answers_give_the_same_bytes(bench: Make, mme_folder: Make, tmp_path: Path) -> None:
    mme = bench(Mme(), mme_folder())
    answers = dict.fromkeys(mme.ids(), "yes")
    for name in ("first", "second"):
        written(mme, dict(sorted(answers.items(), reverse=name == "second")), tmp_path / name)
    files = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert len(files) == 17
    assert all((tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes() for path in files)


def test_a_limit_keeps_units_whole_and_leaves_the_submission_out(bench: Make, mme_folder: Make, tmp_path: Path) -> None:
    mme = bench(Mme(), mme_folder())
    reading = limited(mme.reading, 3)
    assert [question.unit for question in reading.questions] == [
        *["existence/0000.jpg"] * 2,
        *["existence/0001.jpg"] * 2,
        *["count/0000.jpg"] * 2,
    ]
    scores = written(mme, {question.id: "no" for question in reading.questions}, tmp_path / "out", limit=3)
    assert not (tmp_path / "out/results").exists()
    assert "6 questions, the first 3 only: no figure to compare with others'" in shown(scores)
    assert ["perception", "score", "100.0", "of", "400"] in [line.split()[:5] for line in shown(scores).splitlines()]


def test_without_truths_there_is_a_submission_and_no_figure(bench: Make, vqav2_questions: Make, tmp_path: Path) -> None:
    test = bench(VqaV2(), vqav2_questions("test2015"))
    scores = written(test, dict.fromkeys(test.ids(), "yes"), tmp_path / "out")
    assert scores.figures == ()
    assert (tmp_path / "out/submission.json").is_file()
    assert "hold no answers: nothing is scored, the submission is for the server" in shown(scores)


def test_some_truths_are_neither_a_score_nor_none(bench: Make, gqa_file: Make) -> None:
    whole = bench(Gqa(), gqa_file()).reading
    assert has_truths(whole)
    entry = {"question": "?", "imageId": "1", "isBalanced": True}
    with pytest.raises(
        BenchmarkFileError, match="expected true answers to all of the 4 questions, or to none; found 3"
    ):
        has_truths(bench(Gqa(), gqa_file(x=entry)).reading)
