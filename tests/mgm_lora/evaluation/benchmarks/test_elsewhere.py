"""Answers made elsewhere: each question once, and no others; forms that are not known are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import BenchmarkFileError, OtherQuestionsError
from mgm_lora.evaluation.benchmarks.gqa import Gqa

Make = Callable[..., Any]
ANSWERS = {"201307251": "no", "201640614": "woman", "202225914": "yes"}


@pytest.fixture
def gqa(bench: Make, gqa_file: Make) -> Any:
    return bench(Gqa(), gqa_file())


def test_missing_unknown_and_doubled_questions_are_named(gqa: Any, write_lines: Make) -> None:
    ids = ["201307251", "201307251", "9", "202225914"]
    path = write_lines("answers.jsonl", [{"question_id": name, "text": "no"} for name in ids])
    with pytest.raises(OtherQuestionsError) as caught:
        gqa.found(path)
    told = str(caught.value)
    assert "expected an answer to each of the 3 questions" in told
    assert "1 not answered (201640614)" in told
    assert "1 answered more than once (201307251)" in told
    assert "1 answered but unknown (9)" in told


@pytest.mark.parametrize(
    "id_field, answer_field", [("question_id", "text"), ("questionId", "prediction"), ("id", "answer")]
)
def test_usual_fields_are_known(gqa: Any, write_lines: Make, id_field: str, answer_field: str) -> None:
    rows = [{id_field: name, answer_field: answer} for name, answer in ANSWERS.items()]
    assert gqa.found(write_lines("answers.jsonl", rows)) == ANSWERS
    assert gqa.found(write_lines("lines.json", rows)) == ANSWERS


def test_answers_may_lie_in_several_files(gqa: Any, write_lines: Make) -> None:
    rows = [{"id": name, "answer": answer} for name, answer in ANSWERS.items()]
    assert gqa.found(write_lines("1.jsonl", rows[:1]), write_lines("2.jsonl", rows[1:])) == ANSWERS


def test_forms_that_are_not_known_are_told(gqa: Any, tmp_path: Path, write_lines: Make, write_json: Make) -> None:
    with pytest.raises(BenchmarkFileError, match="row 1 without 'answer or text or prediction'"):
        gqa.found(write_lines("answers.jsonl", [{"question_id": "1", "says": "no"}]))
    with pytest.raises(BenchmarkFileError, match="a list of 1 of something else than objects"):
        gqa.found(write_json("answers.json", ["no"]))
    with pytest.raises(
        BenchmarkFileError, match=r"missing\.jsonl': expected answers: [^']*'[^']*'[^']*'.*found nothing there\. Is"
    ):
        gqa.found(tmp_path / "missing.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"id": "1"\n', encoding="utf-8")
    with pytest.raises(BenchmarkFileError, match="line 1 that is no JSON"):
        gqa.found(tmp_path / "broken.jsonl")
    (tmp_path / "x.txt").write_text("a\tb\n", encoding="utf-8")
    with pytest.raises(BenchmarkFileError, match=r"expected picture, question, truth and answer with tabs.*line 1"):
        gqa.found(tmp_path / "x.txt")


def test_figures_depend_on_no_order(gqa: Any, bench: Make, write_lines: Make, write_json: Make) -> None:
    entry = {"imageId": "1", "question": "?", "answer": "no", "isBalanced": True}
    entries = {str(number): entry | {"imageId": str(number // 2)} for number in range(300)}
    answers = {name: "no" if int(name) ** 2 % 11 < 5 else "yes" for name in entries}
    forwards = bench(Gqa(), write_json("forwards.json", entries)).figures(answers)
    assert bench(Gqa(), write_json("backwards.json", dict(reversed(entries.items())))).figures(answers) == forwards
    rows = [{"id": name, "answer": answer} for name, answer in ANSWERS.items()]
    forwards = gqa.figures(gqa.found(write_lines("1.jsonl", rows)))
    backwards = gqa.figures(gqa.found(write_lines("2.jsonl", rows[::-1])))
    assert forwards == backwards


def test_tables_are_read(gqa: Any, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text(
        "id,answer\n" + "".join(f'{name},"{answer}"\n' for name, answer in ANSWERS.items()), encoding="utf-8"
    )
    assert gqa.found(path) == ANSWERS
    with pytest.raises(BenchmarkFileError, match="found nothing there"):
        gqa.found(tmp_path / "missing.tsv")
