"""MMBench: the official table with its pictures and rotations, circular accuracy by hand, the workbook."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook
from PIL import Image

from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.mmbench import CHINESE_LETTER_ANSWER, MmBench, named_option
from mgm_lora.evaluation.benchmarks.results import has_truths

Make = Callable[..., Any]
RIGHT = {"241": "B", "1000241": "A", "252": "A", "1000252": "C. red", "2000252": "red"}


@pytest.mark.parametrize("wrong", [None, "252", "1000252", "2000252"])
def test_a_question_is_right_where_all_rotations_are(bench: Make, mmbench_file: Make, wrong: str | None) -> None:
    answers = RIGHT if wrong is None else RIGHT | {wrong: "blue"}
    values = bench(MmBench(), mmbench_file()).values(answers)
    assert values["all", "circular accuracy"] == (1.0 if wrong is None else 0.5)
    assert values["category: colour", "circular accuracy"] == float(wrong is None)
    assert values["ability: finegrained", "circular accuracy"] == 1.0
    assert values["all", "accuracy unrotated"] == (0.5 if wrong == "252" else 1.0)


def test_rotations_share_a_picture_and_a_unit(bench: Make, mmbench_file: Make) -> None:
    mmbench = bench(MmBench(), mmbench_file())
    by_id = {question.id: question for question in mmbench.reading.questions}
    assert by_id["241"].picture == by_id["1000241"].picture != by_id["252"].picture
    assert by_id["252"].picture == by_id["2000252"].picture
    assert by_id["2000252"].unit == "252"
    with Image.open(by_id["241"].picture) as picture:
        assert picture.size == (16, 16)
    assert mmbench.figures(RIGHT)["all", "circular accuracy"].num_questions == 2


def test_questions_are_asked_as_mgm_does(bench: Make, mmbench_file: Make) -> None:
    prompts = {question.id: question.prompt for question in bench(MmBench(), mmbench_file()).reading.questions}
    letter = "Answer with the option's letter from the given choices directly."
    assert prompts["241"] == f"Which?\nA. cat\nB. dog\n{letter}"
    assert prompts["1000252"] == f"Look.\nWhat colour?\nA. blue\nB. green\nC. red\n{letter}"


def test_chinese_questions_are_asked_in_chinese(bench: Make, mmbench_file: Make) -> None:
    path = mmbench_file()
    path.write_text(path.read_text(encoding="utf-8").replace("Which?", "哪个？"), encoding="utf-8")
    first = bench(MmBench(), path).reading.questions[0]
    assert first.prompt.endswith(CHINESE_LETTER_ANSWER)


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("(B) a dog", "B"),
        ("The answer is B.", "B"),
        ("A or B", ""),
        ("A", "A"),
        ("A big dog is there", "B"),  # an article, and the text of one option
        ("It's a BIG DOG!", "B"),
        ("a small cat or a big dog", ""),
        ("B is what it is, I am nearly sure of that", ""),  # too far from the end
        ("A long tale of a big dog that goes on and on without any end in sight", ""),
        ("", ""),
    ],
)
def test_options_are_found_as_vlmevalkit_does(answer: str, letter: str) -> None:
    assert named_option(answer, options={"A": "a small cat", "B": "a big dog"}) == letter


def test_submission_is_a_workbook(bench: Make, mmbench_file: Make, tmp_path: Path) -> None:
    [path] = bench(MmBench(), mmbench_file()).submitted(RIGHT | {"241": "B & <b>\x07"}, tmp_path / "out")
    header, first, *rest = load_workbook(path).active.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "C", "D", "answer", "split", "prediction")
    assert [cell or "" for cell in first] == [241, "Which?", "cat", "dog", "", "", "B", "dev", "B & <b>"]
    assert [row[0] for row in rest] == [252, 1000241, 1000252, 2000252]
    assert bench(MmBench(), mmbench_file()).found(path)["241"] == "B & <b>", "and it is read again"


def test_table_with_predictions_is_read(bench: Make, mmbench_file: Make, tmp_path: Path) -> None:
    path = tmp_path / "answers.tsv"
    path.write_text("index\tprediction\n" + "".join(f"{name}\t{answer}\n" for name, answer in RIGHT.items()))
    assert bench(MmBench(), mmbench_file()).found(path) == RIGHT
    path.with_suffix(".xlsx").touch()
    with pytest.raises(BenchmarkFileError, match=r"found no workbook that can be read"):
        bench(MmBench(), mmbench_file()).found(path.with_suffix(".xlsx"))


def test_missing_rotations_and_answers_are_told(bench: Make, mmbench_file: Make) -> None:
    [note] = bench(MmBench(), mmbench_file(rotations=False)).reading.notes
    assert note.startswith("2 of 2 questions have fewer rotations in the file than options")
    test = bench(MmBench(), mmbench_file(answers=False)).reading
    assert not has_truths(test)


def test_another_shape_is_told(bench: Make, mmbench_file: Make) -> None:
    whole = mmbench_file().read_text(encoding="utf-8")

    def told(text: str) -> str:
        path = mmbench_file()
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BenchmarkFileError) as caught:
            bench(MmBench(), path)
        return str(caught.value)

    assert "found no image among index, question" in told(whole.replace("image", "picture", 1))
    assert "found an index that is no number ('24a')" in told(whole.replace("\n241\t", "\n24a\t"))
    assert "1 ids more than once (252)" in told(whole.replace("\n1000252\t", "\n252\t"))
    assert "found answers in 4 of 5" in told(whole.replace("\tB\tidentity", "\t\tidentity"))
    assert "letters of options; found 1 others (index 241)" in told(whole.replace("\tB\tidentity", "\tD\tidentity"))
    assert "found 1 rotations alone (77)" in told(whole.replace("\n1000241\t", "\n1000077\t"))
    assert "expected pictures in base64; found another text at index 1000241" in told(
        whole.replace("\t241\t", "\t99999!\t")
    )
