"""MME, fourteen subtasks of perception and cognition (arXiv 2306.13394), two yes-or-no questions a picture.

Reads the released folder MME_Benchmark_release_version. As the official calculation.py does: an answer says what its first four letters hold, `yes`
before `no`, in lower case; accuracy is over questions, accuracy+ over pictures with both questions right; a subtask's score is their sum times 100,
and perception (2000 at best) and cognition (800) are sums over subtasks. As LLaVA and MGM ask, `Please answer yes or no.` gives way to their line.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

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
from mgm_lora.evaluation.benchmarks.figures import Figure, mean_of_groups_figure, share_figure
from mgm_lora.evaluation.benchmarks.files import other_file, read_lines, single_file
from mgm_lora.settings import EvaluationSettings

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASK_BEST = 200.0
_YES_OR_NO = "Please answer yes or no."
_PICTURES = frozenset({".jpg", ".jpeg", ".png"})
_EXPECTED = "MME_Benchmark_release_version, a folder for each of the 14 subtasks"
_LINES = "two lines of question, tab, Yes or No"


class Mme:
    """The benchmark `mme`."""

    name: ClassVar[str] = "mme"
    title: ClassVar[str] = "MME"
    files: ClassVar[str] = "MME_Benchmark_release_version (the folder, with its pictures)"
    takes: ClassVar[frozenset[str]] = frozenset()

    def read(self, sources: Sources) -> Reading:
        folder = single_file(sources.questions, expected=self.files)
        if not folder.is_dir():
            raise other_file(folder, expected=_EXPECTED, found="no folder")
        missing = [name for name in (*PERCEPTION, *COGNITION) if not (folder / name).is_dir()]
        if missing:
            found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
            raise other_file(
                folder, expected=_EXPECTED, found=f"none for {', '.join(missing)} (folders there: {found})"
            )
        return Reading(tuple(item for name in (*PERCEPTION, *COGNITION) for item in _read_subtask(folder / name)))

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        return float(yes_no_or_other(answer) in question.truths)

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        subtasks = dict.fromkeys(item.question.kinds["subtask"] for item in rated)
        figures = [
            _total(rated, subtasks=[name for name in names if name in subtasks], group=group, evaluation=evaluation)
            for group, names in (("perception", PERCEPTION), ("cognition", COGNITION))
            if any(name in subtasks for name in names)
        ]
        for name in (*PERCEPTION, *COGNITION):
            if name in subtasks:
                figures += _subtask_figures(_of(rated, [name]), name=name, evaluation=evaluation)
        return figures

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        return find_by_keys(file, questions=questions, keys_of=_keys_of, key_of=_key_of)

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """A file per subtask in `results`, the folder that the official calculation.py is given."""
        results = folder / "results"
        results.mkdir()
        paths = []
        for name in dict.fromkeys(question.kinds["subtask"] for question in questions):
            lines = [
                "\t".join(
                    (
                        question.picture.name,
                        question.details["question"],
                        question.details["truth"],
                        " ".join(answers[question.id].split()),
                    )
                )
                for question in questions
                if question.kinds["subtask"] == name
            ]
            paths.append(results / f"{name}.txt")
            paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
        return paths


def yes_no_or_other(answer: str) -> str:
    """What the first four letters say."""
    lowered = answer.lower()
    beginning = lowered if lowered in ("yes", "no") else lowered[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


def _read_subtask(folder: Path) -> Iterator[BenchmarkQuestion]:
    """Some subtasks have their files side by side, others in two folders."""
    pictures, texts = folder / "images", folder / "questions_answers_YN"
    if not pictures.is_dir():
        pictures = texts = folder
    by_stem = {path.stem: path for path in sorted(pictures.iterdir()) if path.suffix.lower() in _PICTURES}
    files = sorted(texts.glob("*.txt"))
    if not files:
        raise other_file(folder, expected="a text file of questions per picture", found="none")
    for file in files:
        if file.stem not in by_stem:
            raise other_file(file, expected=f"a picture '{file.stem}.jpg' or .png in '{pictures}'", found="none")
        yield from _read_questions(file, picture=by_stem[file.stem], subtask=folder.name)


def _read_questions(file: Path, *, picture: Path, subtask: str) -> Iterator[BenchmarkQuestion]:
    pairs = [line.strip().split("\t") for _, line in read_lines(file, expected=_LINES)]
    if len(pairs) != 2 or any(len(pair) != 2 or pair[1].lower() not in ("yes", "no") for pair in pairs):
        raise other_file(file, expected=_LINES, found=repr(pairs))
    for number, (question, truth) in enumerate(pairs, start=1):
        yield BenchmarkQuestion(
            id=f"{subtask}/{picture.name}#{number}",
            prompt=asked(question.replace(_YES_OR_NO, "").strip(), SHORT_ANSWER),
            picture=picture,
            truths=(truth.lower(),),
            kinds={"subtask": subtask},
            unit=f"{subtask}/{picture.name}",
            details={"question": question, "truth": truth},
        )


def _of(rated: Sequence[RatedAnswer], subtasks: Sequence[str]) -> dict[str, list[RatedAnswer]]:
    """The two answers of each picture of some subtasks."""
    pairs: dict[str, list[RatedAnswer]] = {}
    for item in rated:
        if item.question.kinds["subtask"] in subtasks:
            pairs.setdefault(item.question.unit, []).append(item)
    return pairs


def _total(
    rated: Sequence[RatedAnswer], *, subtasks: Sequence[str], group: str, evaluation: EvaluationSettings
) -> Figure:
    pairs = _of(rated, subtasks)
    return mean_of_groups_figure(
        [_accuracy_and_plus(items) / 2 for items in pairs.values()],
        groups=[items[0].question.kinds["subtask"] for items in pairs.values()],
        pictures=list(pairs),
        group=group,
        metric="score",
        out_of=SUBTASK_BEST * len(subtasks),
        evaluation=evaluation,
    )


def _subtask_figures(
    pairs: Mapping[str, Sequence[RatedAnswer]], *, name: str, evaluation: EvaluationSettings
) -> list[Figure]:
    def share(metric: str, values: Sequence[float], pictures: Sequence[str]) -> Figure:
        return share_figure(values, pictures=pictures, group=name, metric=metric, evaluation=evaluation)

    answers = [item for items in pairs.values() for item in items]
    score = share("score", [_accuracy_and_plus(items) / 2 for items in pairs.values()], list(pairs))
    return [
        score.model_copy(
            update={"out_of": SUBTASK_BEST}
            | {end: SUBTASK_BEST * getattr(score, end) for end in ("value", "low", "high")}
        ),
        share("accuracy", [item.score for item in answers], [item.question.unit for item in answers]),
        share("accuracy+", [_plus(items) for items in pairs.values()], list(pairs)),
    ]


def _accuracy_and_plus(items: Sequence[RatedAnswer]) -> float:
    """A picture's part in accuracy plus accuracy+, 0 to 2."""
    return sum(item.score for item in items) / len(items) + _plus(items)


def _plus(items: Sequence[RatedAnswer]) -> float:
    return float(all(item.score for item in items))


def _keys_of(question: BenchmarkQuestion) -> list[Key]:
    return [(question.id,), (question.unit.rpartition(".")[0], _bare(question.details["question"]))]


def _key_of(row: Row) -> Key:
    """Of the official results, of LLaVA's answers (question_id `subtask/picture`, the question in the prompt), or ours."""
    if "subtask" in row:
        return (f"{row['subtask']}/{Path(str(row['picture'])).stem}", _bare(str(row["question"])))
    if "prompt" not in row or "id" in row:
        return id_key(row)
    subtask, _, picture = str(row["question_id"]).rpartition("/")
    return (f"{subtask.partition('/')[0]}/{Path(picture).stem}", _bare(str(row["prompt"])))


def _bare(question: str) -> str:
    return " ".join(question.replace(SHORT_ANSWER, "").replace(_YES_OR_NO, "").split())
