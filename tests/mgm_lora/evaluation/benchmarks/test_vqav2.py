"""VQAv2: pairs of files, answer types, the test split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.vqav2 import VqaV2

Make = Callable[..., Any]
ANSWERS = {"262148000": "At table", "262148001": "Two.", "9000": "No"}


@pytest.fixture
def vqav2(bench: Make, vqav2_questions: Make, vqav2_annotations: Make) -> Any:
    return bench(VqaV2(), vqav2_questions(), annotations=vqav2_annotations())


def test_accuracy_by_hand_and_by_type(vqav2: Any) -> None:
    values = vqav2.values(ANSWERS)
    assert values["all", "VQA accuracy"] == pytest.approx((0.6 + 1.0 + 0.0) / 3, abs=1e-6)
    assert values["answer type: other", "VQA accuracy"] == pytest.approx(0.6)
    assert values["answer type: number", "VQA accuracy"] == 1.0
    assert values["question type: is it", "VQA accuracy"] == 0.0


def test_pictures_and_prompts(vqav2: Any, tmp_path: Path) -> None:
    first = vqav2.reading.questions[0]
    assert first.picture == tmp_path / "COCO_val2014_000000262148.jpg"
    assert first.prompt == "Where is he?\nAnswer the question using a single word or phrase."


def test_test_split_gives_a_submission_alone(bench: Make, vqav2_questions: Make, tmp_path: Path) -> None:
    test = bench(VqaV2(), vqav2_questions("test-dev2015"))
    assert test.reading.questions[0].picture.name == "COCO_test2015_000000262148.jpg"
    assert not any(question.truths for question in test.reading.questions)
    [path] = test.submitted(ANSWERS, tmp_path / "out")
    assert json.loads(path.read_text())[:2] == [
        {"question_id": 262148000, "answer": "at table"},
        {"question_id": 262148001, "answer": "2"},
    ]
    assert test.found(path)["9000"] == "no"


def test_another_version_or_half_of_another_pair_is_told(
    bench: Make, vqav2_questions: Make, vqav2_annotations: Make
) -> None:
    with pytest.raises(BenchmarkFileError, match=r"expected VQA v2\.0.*found version '1\.0'"):
        bench(VqaV2(), vqav2_questions(version="1.0"))
    with pytest.raises(BenchmarkFileError, match="the questions are of 'train2014', the annotations of 'val2014'"):
        bench(VqaV2(), vqav2_questions("train2014"), annotations=vqav2_annotations())
    with pytest.raises(
        BenchmarkFileError, match=r"1 questions have no annotation \(9000\), 1 annotations no question \(77\)"
    ):
        bench(VqaV2(), vqav2_questions(), annotations=vqav2_annotations(last_id=77))
    with pytest.raises(BenchmarkFileError, match=r"expected VQA v2\.0's annotations"):
        bench(VqaV2(), vqav2_questions(), annotations=vqav2_questions())
    with pytest.raises(BenchmarkFileError, match=r"expected one file, v2_OpenEnded.*found 2"):
        bench(VqaV2(), vqav2_questions(), vqav2_questions())
