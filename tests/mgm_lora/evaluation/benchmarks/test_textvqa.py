"""TextVQA: the official file, LLaVA's answers and prompts, VQA accuracy by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import BenchmarkFileError, OtherQuestionsError
from mgm_lora.evaluation.benchmarks.published_prompts import read_prompts, with_prompts
from mgm_lora.evaluation.benchmarks.textvqa import TextVqa

Make = Callable[..., Any]
ANSWERS = {"34602": "Nous les gosses.", "34603": "5:41", "34604": "2"}


def test_questions_are_asked_as_llava_does(bench: Make, textvqa_file: Make, tmp_path: Path) -> None:
    first, second, _ = bench(TextVqa(), textvqa_file()).reading.questions
    assert first.prompt == "what brand?\nAnswer the question using a single word or phrase."
    assert first.picture == second.picture == tmp_path / "003a.jpg"


def test_accuracy_by_hand(bench: Make, textvqa_file: Make) -> None:
    figure = bench(TextVqa(), textvqa_file()).figures(ANSWERS)["all", "VQA accuracy"]
    assert figure.value == pytest.approx((1.0 + 0.9 + 1.0) / 3, abs=1e-6)
    assert (figure.num_questions, figure.num_pictures) == (3, 2)


def test_llava_answers_are_found_by_picture_and_question(bench: Make, textvqa_file: Make, write_lines: Make) -> None:
    suffix = "Answer the question using a single word or phrase."
    rows = [
        {"question_id": "ff01", "prompt": f"What brand?\nReference OCR token: A, B\n{suffix}", "text": "2"},
        {"question_id": "003a", "prompt": f"Reference OCR token: X\nWhat time?\n{suffix}", "text": "5:41"},
        {"question_id": "003a", "prompt": f"What brand?\n{suffix}", "text": "Nous les gosses."},
    ]
    assert bench(TextVqa(), textvqa_file()).found(write_lines("llava.jsonl", rows)) == ANSWERS


def test_submission_can_be_read_again(bench: Make, textvqa_file: Make, tmp_path: Path) -> None:
    textvqa = bench(TextVqa(), textvqa_file())
    [path] = textvqa.submitted(ANSWERS, tmp_path / "out")
    assert json.loads(path.read_text())[0] == {"question_id": 34602, "answer": "Nous les gosses."}
    assert textvqa.found(path) == ANSWERS


def test_published_prompts_are_asked_instead(bench: Make, textvqa_file: Make, write_lines: Make) -> None:
    questions = [("003a", "What brand?"), ("003a", "What time?"), ("ff01", "What brand?")]
    rows = [
        {
            "question_id": picture,
            "image": f"{picture}.jpg",
            "text": f"{text}\nReference OCR token: HI\nAnswer.",
            "category": "default",
        }
        for picture, text in questions
    ]
    textvqa = bench(TextVqa(), textvqa_file())
    asked = with_prompts(textvqa.reading, read_prompts(write_lines("ocr.jsonl", rows)), benchmark=textvqa.benchmark)
    assert [question.prompt for question in asked.questions] == [row["text"] for row in rows]
    with pytest.raises(OtherQuestionsError, match=r"1 not answered \(34604\)"):
        with_prompts(textvqa.reading, read_prompts(write_lines("less.jsonl", rows[:2])), benchmark=textvqa.benchmark)


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"dataset_version": "0.5"},
            r"expected TextVQA 0\.5\.1.*found dataset_name and dataset_version \('textvqa', '0\.5'\)",
        ),
        ({"dataset_name": "vizwiz"}, "vizwiz"),
        ({"data": {}}, "found an object of 'dataset_type'"),
        ({"data": [{"question_id": 1}]}, r"1 of 1 entries of another form \(entry 0: image_id: Field required\)"),
        ({"data": [{"question_id": 1, "image_id": "a", "question": "?", "answers": ["one"]}]}, "at least 10 items"),
        ({"data": [{"question_id": 1, "image_id": "a", "question": "?"}] * 2}, r"1 ids more than once \(1\)"),
        ({"data": []}, "found no entry"),
    ],
)
def test_another_version_or_shape_is_told(bench: Make, textvqa_file: Make, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BenchmarkFileError, match=told):
        bench(TextVqa(), textvqa_file(**changes))
