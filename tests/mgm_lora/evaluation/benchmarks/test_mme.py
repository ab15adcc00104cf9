"""MME: the released folder, yes and no by the first letters, scores and accuracy+ by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.mme import COGNITION, PERCEPTION, Mme, yes_no_or_other

Make = Callable[..., Any]


@pytest.fixture
def mme(bench: Make, mme_folder: Make) -> Any:
    return bench(Mme(), mme_folder(), pictures=None)


def answers(mme: Any) -> dict[str, str]:
    """All right, but `count` says yes to all, and one of `color`'s four is no answer."""
    told = {question.id: question.truths[0].capitalize() for question in mme.reading.questions}
    told |= {name: "Yes" for name in told if name.startswith("count/")}
    return told | {"color/0000.jpg#1": "maybe"}


@pytest.mark.parametrize(
    "answer, read",
    [
        ("Yes", "yes"),
        ("No, never", "no"),
        ("yes and no", "yes"),
        ("now", "no"),
        ("It is no", "other"),
        ("an no", "other"),
        ("a no", "no"),
        ("", "other"),
    ],
)
def test_the_first_letters_say_it(answer: str, read: str) -> None:
    assert yes_no_or_other(answer) == read


def test_scores_by_hand(mme: Any) -> None:
    figures = mme.figures(answers(mme))
    values = {name: figure.value for name, figure in figures.items()}
    assert values["existence", "score"] == 200.0
    assert [values["count", name] for name in ("accuracy", "accuracy+", "score")] == [0.5, 0.0, 50.0]
    assert [values["color", name] for name in ("accuracy", "accuracy+", "score")] == [0.75, 0.5, 125.0]
    assert values["perception", "score"] == 8 * 200 + 50 + 125
    assert values["cognition", "score"] == 800.0
    assert (figures["perception", "score"].out_of, figures["cognition", "score"].out_of) == (2000.0, 800.0)
    assert (figures["color", "accuracy"].num_questions, figures["color", "accuracy+"].num_questions) == (4, 2)


def test_questions_are_asked_as_llava_does(mme: Any) -> None:
    first, second = mme.reading.questions[:2]
    assert first.prompt == "Is it 0?\nAnswer the question using a single word or phrase."
    assert first.unit == second.unit == "existence/0000.jpg"
    posters = next(question for question in mme.reading.questions if question.id.startswith("posters/"))
    assert posters.picture.parent.name == "images"


def test_official_results_folder_is_written_and_read(mme: Any, tmp_path: Path) -> None:
    told = answers(mme) | {"OCR/0001.jpg#2": "No,\tit isn't\n"}
    paths = mme.submitted(told, tmp_path / "out")
    assert {path.stem for path in paths} == {*PERCEPTION, *COGNITION}
    lines = (tmp_path / "out/results/OCR.txt").read_text().splitlines()
    assert lines[3] == "0001.jpg\tIs it  not 1?  Please answer yes or no.\tNo\tNo, it isn't"
    assert mme.values(mme.found(tmp_path / "out/results")) == mme.values(told)


def test_llava_answers_are_found(mme: Any, write_lines: Make) -> None:
    rows = [
        {"question_id": question.unit, "prompt": question.prompt, "text": answers(mme)[question.id]}
        for question in reversed(mme.reading.questions)
    ]
    assert mme.found(write_lines("llava.jsonl", rows)) == answers(mme)


def test_another_shape_is_told(bench: Make, mme_folder: Make) -> None:
    release = mme_folder()
    (release / "OCR/0000.txt").write_text("Is it?\tYes\n", encoding="utf-8")
    with pytest.raises(BenchmarkFileError, match="expected two lines of question, tab, Yes or No"):
        bench(Mme(), release)
    (release / "OCR/0000.txt").unlink()
    (release / "OCR/0000.jpg").rename(release / "OCR/9.jpg")
    (release / "OCR/0001.jpg").unlink()
    with pytest.raises(BenchmarkFileError, match=r"expected a picture '0001\.jpg' or \.png"):
        bench(Mme(), release)
    (release / "scene").rename(release / "scenes")
    with pytest.raises(BenchmarkFileError, match=r"found none for scene \(folders there: OCR, artwork"):
        bench(Mme(), release)
