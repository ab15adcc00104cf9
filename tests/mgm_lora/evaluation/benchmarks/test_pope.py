"""POPE: yes and no as the official script reads them; its figures by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.pope import Pope, yes_or_no
from mgm_lora.evaluation.benchmarks.published_prompts import places_of, read_prompts

Make = Callable[..., Any]
CATEGORIES = ("random", "popular", "adversarial")


@pytest.fixture
def pope(bench: Make, pope_file: Make) -> Any:
    return bench(Pope(), *(pope_file(category) for category in CATEGORIES))


def answers(pope: Any) -> dict[str, str]:
    """Of six questions each: random says yes to 1 and 2, popular to all, adversarial to none. True are 1 and 4."""
    said = {"random": {1, 2}, "popular": set(range(1, 7)), "adversarial": set()}
    return {
        name: "Yes" if int(name.split("/")[1]) in said[name.split("/")[0]] else "No, there is none."
        for name in pope.ids()
    }


@pytest.mark.parametrize(
    "answer, read",
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no, there is not", "no"),
        ("There is not one", "no"),
        ("Yes. No doubt.", "yes"),  # the first sentence only
        ("NO", "yes"),  # as published: only No, no and not
        ("None", "yes"),
        ("Nothing", "yes"),
        ("", "yes"),
        ("I see,no cat", "yes"),  # as published: the comma goes, and the words are one
    ],
)
def test_yes_and_no(answer: str, read: str) -> None:
    assert yes_or_no(answer) == read


def test_figures_by_hand(pope: Any) -> None:
    values = pope.values(answers(pope))

    def row(group: str) -> list[float]:
        return [values[group, metric] for metric in ("accuracy", "precision", "recall", "F1", "yes-rate")]

    assert row("category: random") == pytest.approx([4 / 6, 1 / 2, 1 / 2, 1 / 2, 2 / 6], abs=1e-6)
    assert row("category: popular") == pytest.approx([2 / 6, 2 / 6, 1.0, 1 / 2, 1.0], abs=1e-6)
    assert row("category: adversarial") == pytest.approx([4 / 6, 0.0, 0.0, 0.0, 0.0], abs=1e-6)
    assert row("all") == pytest.approx([10 / 18, 3 / 8, 3 / 6, 6 / 14, 8 / 18], abs=1e-6)
    assert values["all", "mean F1 of categories"] == pytest.approx(1 / 3, abs=1e-6)


def test_one_category_alone_is_told(bench: Make, pope_file: Make) -> None:
    assert bench(Pope(), pope_file("random")).reading.notes == ("without popular and adversarial",)


def test_official_answer_files_are_read_in_order(pope: Any, tmp_path: Path, write_lines: Make) -> None:
    paths = pope.submitted(answers(pope), tmp_path / "out")
    assert [path.name for path in paths] == [f"coco_pope_{category}_answers.json" for category in CATEGORIES]
    assert json.loads(paths[0].read_text().splitlines()[1]) == {
        "question": "Is there a dog in the image?",
        "answer": "Yes",
    }
    assert pope.found(*paths) == answers(pope)
    swapped = [json.loads(line) for line in reversed(paths[0].read_text().splitlines())]
    with pytest.raises(BenchmarkFileError, match="expected the questions of 'random' in their order"):
        pope.found(write_lines("coco_pope_random_swapped.json", swapped))


def test_llava_answers_are_found_by_its_question_file(pope: Any, write_lines: Make) -> None:
    by_id = {question.id: question for question in pope.reading.questions}
    asked, told = [], []
    for number, (name, answer) in enumerate(answers(pope).items(), start=7000):
        text = by_id[name].prompt
        asked.append(
            {"question_id": number, "image": by_id[name].picture.name, "text": text, "category": name.split("/")[0]}
        )
        told.append({"question_id": number, "prompt": text, "text": answer, "metadata": {}})
    path = write_lines("llava.jsonl", told[::-1])
    with pytest.raises(BenchmarkFileError, match=r"--prompts llava_pope_test\.jsonl"):
        pope.found(path)
    places = places_of(read_prompts(write_lines("llava_pope_test.jsonl", asked)))
    assert pope.found(path, places=places) == answers(pope)


def test_another_shape_is_told(bench: Make, pope_file: Make, write_lines: Make) -> None:
    with pytest.raises(BenchmarkFileError, match=r"expected a name such as coco_pope_random\.json"):
        bench(Pope(), write_lines("pope.json", [{}]))
    with pytest.raises(BenchmarkFileError, match="line 1: label: Input should be 'yes' or 'no'"):
        bench(
            Pope(),
            write_lines("coco_pope_random.json", [{"question_id": 1, "image": "a", "text": "?", "label": "maybe"}]),
        )
    with pytest.raises(BenchmarkFileError, match="found a second 'popular'"):
        bench(Pope(), pope_file("popular"), pope_file("popular"))
