"""ScienceQA-IMG: questions with a picture, of one split; options as LLaVA's script reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import BenchmarkFileError, OtherQuestionsError
from mgm_lora.evaluation.benchmarks.published_prompts import read_prompts, with_prompts
from mgm_lora.evaluation.benchmarks.scienceqa import ScienceQa, named_option

Make = Callable[..., Any]
ANSWERS = {"5": "C", "6": "B. soft", "8": "The answer is C."}
"""True are C, A, C."""


def test_only_questions_with_a_picture_of_the_split_are_asked(
    bench: Make, scienceqa_file: Make, tmp_path: Path
) -> None:
    scienceqa = bench(ScienceQa(), scienceqa_file())
    assert scienceqa.ids() == ["5", "6", "8"]
    assert scienceqa.reading.notes == ("1 questions without a picture are not asked",)
    first = scienceqa.reading.questions[0]
    assert first.picture == tmp_path / "test/5/image.png"
    assert first.prompt.split("\n") == [
        "Context: Figure: a parachute.",
        "Which is 5?",
        "A. hard",
        "B. soft",
        "C. yellow",
        "Answer with the option's letter from the given choices directly.",
    ]
    assert not scienceqa.reading.questions[1].prompt.startswith("Context")
    assert bench(ScienceQa(), scienceqa_file(), split="train").ids() == ["7"]


def test_accuracy_by_hand(bench: Make, scienceqa_file: Make) -> None:
    values = bench(ScienceQa(), scienceqa_file()).values(ANSWERS)
    assert values["all", "accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert values["subject: social science", "accuracy"] == 0.0
    assert values["grade: 1-6", "accuracy"] == 1.0
    assert values["grade: 7-12", "accuracy"] == 0.5
    assert values["text: with context", "accuracy"] == 1.0


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("B. soft", "B"),
        ("Well. The answer is B. It is soft.", "B"),
        ("The answer is A. The answer is B.", ""),
        ("D", ""),  # no such option
        ("(B) soft", ""),  # as published
        ("B.", ""),  # as published
        ("soft", ""),
        ("", ""),
    ],
)
def test_options_are_read_as_published(answer: str, letter: str) -> None:
    assert named_option(answer, options={"A": "hard", "B": "soft", "C": "yellow"}) == letter


def test_official_results_have_numbers_and_questions_without_a_picture(
    bench: Make, scienceqa_file: Make, tmp_path: Path, write_json: Make
) -> None:
    scienceqa = bench(ScienceQa(), scienceqa_file())
    [path] = scienceqa.submitted(ANSWERS | {"6": "?"}, tmp_path / "out")
    content = json.loads(path.read_text())
    assert content["results"] == {"5": 2, "6": -1, "8": 2}
    content["results"]["4"] = 0
    assert scienceqa.found(write_json("results.json", content)) == {"5": "C", "6": "none", "8": "C"}
    content["results"]["99"] = 0
    with pytest.raises(OtherQuestionsError, match=r"1 answered but unknown \(99\)"):
        scienceqa.found(write_json("results.json", content))


def test_llava_question_list_gives_prompts(bench: Make, scienceqa_file: Make, write_json: Make) -> None:
    def entry(name: str, **fields: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": f"<image>\nWhat of {name}?\nA. hard"}, {"from": "gpt", "value": "A"}]
        return {"id": name, "conversations": turns, **fields}

    entries = [entry("4"), *(entry(name, image=f"{name}/image.png") for name in ("5", "6", "8"))]
    scienceqa = bench(ScienceQa(), scienceqa_file())
    prompts = read_prompts(write_json("llava_test_CQM-A.json", entries))
    asked = with_prompts(scienceqa.reading, prompts, benchmark=scienceqa.benchmark)
    assert asked.questions[2].prompt == (
        "What of 8?\nA. hard\nAnswer with the option's letter from the given choices directly."
    )


def test_another_shape_is_told(bench: Make, scienceqa_file: Make, write_json: Make) -> None:
    with pytest.raises(BenchmarkFileError, match="in the split 'exam'; found the splits test, train"):
        bench(ScienceQa(), scienceqa_file(), split="exam")
    with pytest.raises(BenchmarkFileError, match="x: question: Field required"):
        bench(ScienceQa(), scienceqa_file(x={}))
    with pytest.raises(BenchmarkFileError, match="found a list of 0"):
        bench(ScienceQa(), write_json("problems.json", []))


def test_other_forms_of_results_and_prompts_are_told(bench: Make, scienceqa_file: Make, write_json: Make) -> None:
    with pytest.raises(BenchmarkFileError, match="expected `results` that are numbers of choices"):
        bench(ScienceQa(), scienceqa_file()).found(write_json("results.json", {"results": {"5": "C"}}))
    with pytest.raises(BenchmarkFileError, match="found an object of 'id'"):
        read_prompts(write_json("one.json", {"id": "5"}))
    with pytest.raises(BenchmarkFileError, match="an entry without 'conversations'"):
        read_prompts(write_json("less.json", [{"id": "5", "image": "5/image.png"}]))
