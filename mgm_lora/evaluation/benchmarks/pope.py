"""POPE, whether objects are there that aren't (arXiv 2305.10355), yes or no.

The objects are drawn at random, by popularity, or adversarially. Reads coco_pope_random.json, coco_pope_popular.json and
coco_pope_adversarial.json (lines of JSON), one or all of them. An answer is read as the official evaluate.py does: of its first sentence, `No`, `no`
or `not` among the words means no, anything else yes. LLaVA-1.5's published figure is the mean of the three F1.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel

from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.door import (
    SHORT_ANSWER,
    AnswerFile,
    BenchmarkQuestion,
    FoundAnswer,
    Key,
    RatedAnswer,
    Reading,
    Row,
    Sources,
    asked,
)
from mgm_lora.evaluation.benchmarks.elsewhere import find_by_keys, id_key
from mgm_lora.evaluation.benchmarks.figures import EVERYTHING, Figure, ratio_figure, share_figure
from mgm_lora.evaluation.benchmarks.files import check_unique, other_file, parse_entries, read_json_lines
from mgm_lora.evaluation.benchmarks.ratings import by_kind
from mgm_lora.settings import EvaluationSettings

_CATEGORY = re.compile(r"(?:.*_)?pope_(random|popular|adversarial).*")
_EXPECTED = "POPE's lines of {'question_id', 'image', 'text', 'label': 'yes' or 'no'}"
_NO = frozenset({"No", "not", "no"})


class _Entry(BaseModel):
    question_id: int
    image: str
    text: str
    label: Literal["yes", "no"]


class Pope:
    """The benchmark `pope`."""

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "POPE"
    files: ClassVar[str] = (
        "coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, --questions before each"
    )
    takes: ClassVar[frozenset[str]] = frozenset({"pictures"})

    def read(self, sources: Sources) -> Reading:
        by_category: dict[str, list[BenchmarkQuestion]] = {}
        for path in sources.questions:
            category = _category(path)
            if category in by_category:
                raise BenchmarkFileError(
                    f"--questions: expected one file of each category; found a second '{category}', '{path}'"
                )
            by_category[category] = _read_category(path, category=category, folder=sources.pictures or Path())
        missing = [name for name in ("random", "popular", "adversarial") if name not in by_category]
        notes = [f"without {' and '.join(missing)}"] if missing else []
        return Reading(tuple(question for part in by_category.values() for question in part), tuple(notes))

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        return float(yes_or_no(answer) in question.truths)

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        groups = {
            group: _figures_of(items, group=group, evaluation=evaluation) for group, items in by_kind(rated).items()
        }
        scores = [
            figure.value for group in groups if group != EVERYTHING for figure in groups[group] if figure.metric == "F1"
        ]
        everything = groups[EVERYTHING]
        mean = everything[0].model_copy(
            update={
                "metric": "mean F1 of categories",
                "value": round(sum(scores) / len(scores), 6),
                "low": None,
                "high": None,
            }
        )
        return [*everything, mean, *(figure for group in groups if group != EVERYTHING for figure in groups[group])]

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        """Also of the official answer files, whose rows stand for the questions of a category in their order."""
        if file.rows and all(row.keys() >= {"question", "answer"} and "id" not in row for row in file.rows):
            return _find_in_order(file, questions=questions)
        return find_by_keys(file, questions=questions, keys_of=_keys_of, key_of=_key_of)

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """An answer file per category, as the official evaluate.py reads it beside the question file."""
        paths = []
        for category in dict.fromkeys(question.kinds["category"] for question in questions):
            path = folder / f"coco_pope_{category}_answers.json"
            rows = [
                {"question": question.details["text"], "answer": answers[question.id]}
                for question in questions
                if question.kinds["category"] == category
            ]
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            paths.append(path)
        return paths


def yes_or_no(answer: str) -> str:
    """`no` where the first sentence has a `No`, `no` or `not` among its words, and else `yes`."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "yes" if _NO.isdisjoint(words) else "no"


def _category(path: Path) -> str:
    found = _CATEGORY.fullmatch(path.stem)
    if found is None:
        raise other_file(
            path, expected="a name such as coco_pope_random.json, which says the category", found=f"'{path.name}'"
        )
    return found[1]


def _read_category(path: Path, *, category: str, folder: Path) -> list[BenchmarkQuestion]:
    rows = read_json_lines(path, expected=_EXPECTED)
    named = ((f"line {number}", row) for number, row in enumerate(rows, start=1))
    entries = parse_entries(named, _Entry, path=path, expected=_EXPECTED)
    check_unique([str(entry.question_id) for entry in entries], path=path, expected=_EXPECTED)
    return [
        BenchmarkQuestion(
            id=f"{category}/{entry.question_id}",
            prompt=asked(entry.text, SHORT_ANSWER),
            picture=folder / entry.image,
            truths=(entry.label,),
            kinds={"category": category},
            details={"image": entry.image, "text": entry.text},
        )
        for entry in entries
    ]


def _figures_of(items: Sequence[RatedAnswer], *, group: str, evaluation: EvaluationSettings) -> list[Figure]:
    pictures = [str(item.question.picture) for item in items]
    says_yes = [float(yes_or_no(item.answer) == "yes") for item in items]
    is_yes = [float("yes" in item.question.truths) for item in items]
    hits = [said * true for said, true in zip(says_yes, is_yes, strict=True)]

    def share(metric: str, values: Sequence[float]) -> Figure:
        return share_figure(values, pictures=pictures, group=group, metric=metric, evaluation=evaluation)

    def ratio(metric: str, parts: Sequence[float], wholes: Sequence[float]) -> Figure:
        return ratio_figure(parts, wholes, pictures=pictures, group=group, metric=metric, evaluation=evaluation)

    return [
        share("accuracy", [item.score for item in items]),
        ratio("F1", [2 * hit for hit in hits], [said + true for said, true in zip(says_yes, is_yes, strict=True)]),
        ratio("precision", hits, says_yes),
        ratio("recall", hits, is_yes),
        share("yes-rate", says_yes),
    ]


def _find_in_order(file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
    category = _category(file.path)
    wanted = [question for question in questions if question.kinds["category"] == category]
    found = []
    for number, row in enumerate(file.rows):
        question = wanted[number] if number < len(wanted) else None
        if question is not None and question.details["text"] != row["question"]:
            raise other_file(
                file.path,
                expected=f"the questions of '{category}' in their order ({question.details['text']!r} in line {number + 1})",
                found=repr(row["question"]),
            )
        found.append(FoundAnswer(f"line {number + 1}", question.id if question else None, str(row["answer"])))
    return found


def _keys_of(question: BenchmarkQuestion) -> list[Key]:
    return [(question.id,), (question.kinds["category"], question.details["image"], question.details["text"])]


def _key_of(row: Row) -> Key:
    """LLaVA numbers all categories' questions on; only its question file says which they are."""
    if "id" in row:
        return id_key(row)
    if "category" not in row:
        raise KeyError("category (LLaVA's answers need its question file too: --prompts llava_pope_test.jsonl)")
    return (str(row["category"]), str(row["image"]), str(row["prompt"]).split("\n")[0])
