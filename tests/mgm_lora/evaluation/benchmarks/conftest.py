"""Small files in each benchmark's official format, with their pictures."""

import base64
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mgm_lora.evaluation.benchmarks.door import Benchmark, Reading, Sources
from mgm_lora.evaluation.benchmarks.elsewhere import read_answers
from mgm_lora.evaluation.benchmarks.figures import Figure
from mgm_lora.evaluation.benchmarks.mme import COGNITION, PERCEPTION
from mgm_lora.evaluation.benchmarks.ratings import rate_answers
from mgm_lora.settings import EvaluationSettings

MakeFile = Callable[..., Path]


@pytest.fixture
def evaluation() -> EvaluationSettings:
    return EvaluationSettings(
        batch_size=4, max_new_tokens=4, score_types=(), confidence=0.95, num_resamples=200, seed=3
    )


@dataclass(frozen=True)
class Bench:
    """A benchmark with its files read: what tests ask of it in a line."""

    benchmark: Benchmark
    reading: Reading
    evaluation: EvaluationSettings

    def figures(self, answers: Mapping[str, str]) -> dict[tuple[str, str], Figure]:
        """By group and metric."""
        rated = rate_answers(self.benchmark, questions=self.reading.questions, answers=answers)
        figures = self.benchmark.figures(rated, evaluation=self.evaluation)
        return {(figure.group, figure.metric): figure for figure in figures}

    def values(self, answers: Mapping[str, str]) -> dict[tuple[str, str], float]:
        return {name: figure.value for name, figure in self.figures(answers).items()}

    def ids(self) -> list[str]:
        return [question.id for question in self.reading.questions]

    def found(self, *paths: Path, places: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
        return read_answers(paths, benchmark=self.benchmark, reading=self.reading, places=places or {})

    def submitted(self, answers: Mapping[str, str], folder: Path) -> list[Path]:
        folder.mkdir()
        return self.benchmark.submit(answers, questions=self.reading.questions, folder=folder)


@pytest.fixture
def bench(tmp_path: Path, evaluation: EvaluationSettings) -> Callable[..., Bench]:
    def read(benchmark: Benchmark, *questions: Path, **sources: Any) -> Bench:
        given: dict[str, Any] = {"annotations": None, "pictures": tmp_path, "split": "test"} | sources
        reading = benchmark.read(Sources(questions, unpacked=tmp_path / "unpacked", **given))
        return Bench(benchmark, reading, evaluation)

    return read


@pytest.fixture
def write_json(tmp_path: Path) -> MakeFile:
    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_lines(tmp_path: Path) -> MakeFile:
    def write(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def textvqa_file(write_json: MakeFile) -> MakeFile:
    """Two pictures, three questions; both pictures are asked `what brand?`."""

    def make(**changes: Any) -> Path:
        data = [
            {"question_id": 34602, "image_id": "003a", "question": "what brand?", "answers": ["nous les gosses"] * 10},
            {"question_id": 34603, "image_id": "003a", "question": "what Time?", "answers": ["5:41"] * 3 + ["8"] * 7},
            {"question_id": 34604, "image_id": "ff01", "question": "what brand?", "answers": ["the two"] * 10},
        ]
        content = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data}
        return write_json("TextVQA_0.5.1_val.json", content | changes)

    return make


@pytest.fixture
def vqav2_questions(write_json: MakeFile) -> MakeFile:
    def make(subset: str = "val2014", version: str = "2.0") -> Path:
        questions = [
            {"image_id": 262148, "question": "Where is he?", "question_id": 262148000},
            {"image_id": 262148, "question": "How many?", "question_id": 262148001},
            {"image_id": 9, "question": "Is it?", "question_id": 9000},
        ]
        info = {"description": f"This is v{version} of the VQA dataset.", "version": version}
        content = {"info": info, "task_type": "Open-Ended", "data_subtype": subset, "questions": questions}
        return write_json(f"v2_OpenEnded_mscoco_{subset}_questions.json", content)

    return make


@pytest.fixture
def vqav2_annotations(write_json: MakeFile) -> MakeFile:
    def make(subset: str = "val2014", last_id: int = 9000) -> Path:
        def annotation(question_id: int, kind: str, question_type: str, answers: Sequence[str]) -> dict[str, Any]:
            people = [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(answers, start=1)
            ]
            return {
                "question_id": question_id,
                "image_id": question_id // 1000,
                "answer_type": kind,
                "question_type": question_type,
                "multiple_choice_answer": answers[0],
                "answers": people,
            }

        annotations = [
            annotation(262148000, "other", "where is the", ["at table"] * 2 + ["skateboard"] * 8),
            annotation(262148001, "number", "how many", ["2"] * 9 + ["3"]),
            annotation(last_id, "yes/no", "is it", ["yes"] * 10),
        ]
        content = {"info": {"version": "2.0"}, "data_subtype": subset, "annotations": annotations}
        return write_json(f"v2_mscoco_{subset}_annotations.json", content)

    return make


@pytest.fixture
def pope_file(write_lines: MakeFile) -> MakeFile:
    """Two pictures, three questions each, one of three to be answered with yes."""

    def make(category: str) -> Path:
        rows = [
            {
                "question_id": number,
                "image": f"COCO_val2014_{(number + 2) // 3:012d}.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": "yes" if number % 3 == 1 else "no",
            }
            for number, thing in enumerate(["cat", "dog", "bus", "cat", "cup", "car"], start=1)
        ]
        return write_lines(f"coco_pope_{category}.json", rows)

    return make


@pytest.fixture
def scienceqa_file(write_json: MakeFile) -> MakeFile:
    def make(**changes: Any) -> Path:
        def problem(number: int, **fields: Any) -> dict[str, Any]:
            return {
                "question": f"Which is {number}?",
                "choices": ["hard", "soft", "yellow"],
                "answer": number % 3,
                "hint": "",
                "image": "image.png",
                "task": "closed choice",
                "grade": f"grade{number + 1}",
                "subject": "natural science",
                "topic": "physics",
                "lecture": "",
                "solution": "",
                "split": "test",
            } | fields

        problems = {
            "4": problem(4, image=None),
            "5": problem(5, hint="Figure: a parachute."),
            "6": problem(6, subject="social science"),
            "7": problem(7, split="train"),
            "8": problem(8),
        }
        return write_json("problems.json", problems | changes)

    return make


@pytest.fixture
def gqa_file(write_json: MakeFile) -> MakeFile:
    def make(**changes: Any) -> Path:
        def entry(question: str, answer: str, structure: str, meaning: str, **fields: Any) -> dict[str, Any]:
            return {
                "question": question,
                "answer": answer,
                "fullAnswer": f"It is {answer}.",
                "imageId": "n161313",
                "isBalanced": True,
                "groups": {"global": None, "local": "13-not_overcast"},
                "entailed": [],
                "equivalent": ["201307251"],
                "types": {"structural": structure, "semantic": meaning, "detailed": "existAttrC"},
                "semantic": [],
            } | fields

        content = {
            "201307251": entry("Is it overcast?", "no", "verify", "global"),
            "201640614": entry("Who is wearing the dress?", "woman", "query", "rel"),
            "202225914": entry("Is the cup red?", "yes", "verify", "attr", imageId="n2"),
            "203": entry("Is it?", "yes", "verify", "attr", isBalanced=False),
        }
        return write_json("testdev_balanced_questions.json", content | changes)

    return make


@pytest.fixture
def mme_folder(tmp_path: Path) -> MakeFile:
    """Two pictures in each of the fourteen subtasks, the first with a yes before a no; one subtask in two folders."""

    def make() -> Path:
        release = tmp_path / "MME_Benchmark_release_version"
        for subtask in (*PERCEPTION, *COGNITION):
            pictures = texts = release / subtask
            if subtask == "posters":
                pictures, texts = pictures / "images", texts / "questions_answers_YN"
            for folder in (pictures, texts):
                folder.mkdir(parents=True, exist_ok=True)
            for number in range(2):
                suffix = "png" if subtask == "code_reasoning" else "jpg"
                Image.new("RGB", (16, 16), (100 * number, 9, 9)).save(pictures / f"000{number}.{suffix}")
                lines = [
                    f"Is it {number}? Please answer yes or no.\tYes",
                    f"Is it  not {number}?  Please answer yes or no.\tNo",
                ]
                (texts / f"000{number}.txt").write_text("\n".join(lines), encoding="utf-8")
        (release / "eval_tool").mkdir()
        return release

    return make


@pytest.fixture
def mmbench_file(tmp_path: Path) -> MakeFile:
    """Two questions of two and three options, with their rotations; the rotations name the picture of the first row."""

    def make(**options: Any) -> Path:
        answers, rotations = options.get("answers", True), options.get("rotations", True)
        rows = [
            ["241", "Which?", "nan", "cat", "dog", "", "", "B", "identity", "finegrained", picture_text(1), "dev"],
            [
                "252",
                "What colour?",
                "Look.",
                "red",
                "blue",
                "green",
                "",
                "A",
                "colour",
                "coarse",
                picture_text(2),
                "dev",
            ],
        ]
        if rotations:
            rows += [
                ["1000241", "Which?", "nan", "dog", "cat", "", "", "A", "identity", "finegrained", "241", "dev"],
                [
                    "1000252",
                    "What colour?",
                    "Look.",
                    "blue",
                    "green",
                    "red",
                    "",
                    "C",
                    "colour",
                    "coarse",
                    picture_text(2),
                    "dev",
                ],
                [
                    "2000252",
                    "What colour?",
                    "Look.",
                    "green",
                    "red",
                    "blue",
                    "",
                    "B",
                    "colour",
                    "coarse",
                    picture_text(2),
                    "dev",
                ],
            ]
        header = ["index", "question", "hint", *"ABCD", "answer", "category", "l2-category", "image", "split"]
        path = tmp_path / "mmbench_dev_20230712.tsv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(header)
            writer.writerows(
                [value if answers or header[i] != "answer" else "" for i, value in enumerate(row)] for row in rows
            )
        return path

    return make


def picture_text(number: int) -> str:
    """A picture in base64, longer than what stands for another row's."""
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (40 * number, 80, 120)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
