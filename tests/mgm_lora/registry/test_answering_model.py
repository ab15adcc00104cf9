"""The registered model: which base it takes, and what it takes for a picture and a question."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mgm_lora.errors import BaseChangedError, CheckpointError, DataError, PictureError
from mgm_lora.registry.answering_model import BASE_VARIABLE, read_questions
from mgm_lora.registry.versions import RegisteredVersion

Register = Callable[[], RegisteredVersion]
CHALLENGER = "models:/demo@challenger"


def test_pictures_as_paths_bytes_base64_and_data_urls_are_the_same(
    registered: RegisteredVersion, questions: pd.DataFrame, adapter_answers: list[str]
) -> None:
    model = mlflow.pyfunc.load_model(registered.uri)
    content = [Path(path).read_bytes() for path in questions["picture"]]
    encoded = [base64.b64encode(entry).decode() for entry in content]
    mixed = [content[0], encoded[1], f"data:image/png;base64,{encoded[2]}"]
    assert model.predict(questions.assign(picture=mixed)) == adapter_answers


def test_number_of_tokens_can_be_asked_for(
    registered: RegisteredVersion, questions: pd.DataFrame, adapter_answers: list[str]
) -> None:
    answers = mlflow.pyfunc.load_model(registered.uri).predict(questions, params={"max_new_tokens": 1})
    assert all(len(short) < len(long) for short, long in zip(answers, adapter_answers, strict=True))


def test_example_of_the_version_is_answered(registered: RegisteredVersion, adapter_answers: list[str]) -> None:
    model = mlflow.pyfunc.load_model(registered.uri)
    assert model.predict(model.input_example) == adapter_answers[:1]


def test_changed_base_is_refused(register: Register, project: Path) -> None:
    register()
    config = project / "data/base/config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(BaseChangedError, match="was trained on the base 'data/base'"):
        mlflow.pyfunc.load_model(CHALLENGER)


def test_missing_base_says_where_to_name_it(register: Register, project: Path) -> None:
    register()
    shutil.rmtree(project / "data/base")
    with pytest.raises(CheckpointError, match=BASE_VARIABLE):
        mlflow.pyfunc.load_model(CHALLENGER)


def test_version_answers_in_a_process_that_has_neither_the_project_nor_its_folder(
    register: Register, project: Path, questions: pd.DataFrame, adapter_answers: list[str], tmp_path: Path
) -> None:
    register()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    rows = questions.assign(picture=[str(project / path) for path in questions["picture"]]).to_dict("list")
    script = f"""
import json, mlflow, pandas
model = mlflow.pyfunc.load_model({CHALLENGER!r})
answers = model.predict(pandas.DataFrame({rows!r}))
import mgm_lora
print(json.dumps([mgm_lora.__file__, answers]))
"""
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db",
        BASE_VARIABLE: str(project / "data/base"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=elsewhere, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    package, answers = json.loads(done.stdout.splitlines()[-1])
    assert Path(package).is_relative_to(project / "mlartifacts")
    assert answers == adapter_answers


@pytest.mark.parametrize("empty", [None, "", float("nan"), pd.NA])
def test_question_without_a_picture_has_no_picture_mark(empty: object, tmp_path: Path) -> None:
    [question] = read_questions(pd.DataFrame({"picture": [empty], "question": ["Why?"]}), folder=tmp_path)
    assert question.pictures == ()
    assert question.turns == (("human", "Why?"),)


def test_text_that_is_neither_file_nor_base64_is_taken_for_a_path(tmp_path: Path) -> None:
    [question] = read_questions(pd.DataFrame({"picture": ["no such.png"], "question": ["Why?"]}), folder=tmp_path)
    assert question.pictures == (Path("no such.png"),)


@pytest.mark.parametrize("picture", [17, ["a.png"], {"url": "a.png"}, "data:image/png;base64,%%%"])
def test_what_is_no_picture_is_told_with_its_row(picture: object, tmp_path: Path) -> None:
    rows = pd.DataFrame({"picture": [None, picture], "question": ["Why?", "What?"]})
    with pytest.raises(PictureError, match="row 1"):
        read_questions(rows, folder=tmp_path)


def test_question_that_is_no_text_is_told_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0"):
        read_questions(pd.DataFrame({"picture": [None], "question": [3]}), folder=tmp_path)
