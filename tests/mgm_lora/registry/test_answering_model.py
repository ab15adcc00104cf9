"""The registered model: which base it takes, and how it tells what it refuses."""

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
from mlflow.exceptions import MlflowException

from mgm_lora.errors import BaseChangedError, CheckpointError, SettingsError
from mgm_lora.registry.answering_model import BASE_VARIABLE
from mgm_lora.registry.versions import RegisteredVersion
from mgm_lora.serving.limits import variable

Register = Callable[[], RegisteredVersion]
CHALLENGER = "models:/demo@challenger"


def test_pictures_as_bytes_base64_and_data_urls_are_the_same(
    registered: RegisteredVersion, questions: pd.DataFrame, adapter_answers: list[str]
) -> None:
    model = mlflow.pyfunc.load_model(registered.uri)
    first, second, third = questions["picture"]
    mixed = [base64.b64decode(first), second, f"data:image/png;base64,{third}"]
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
    rows = questions.to_dict("list")
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


def test_paths_are_read_below_the_folder_that_the_environment_names(
    registered: RegisteredVersion, questions: pd.DataFrame, adapter_answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = questions.assign(picture=["0.png", "1.png", "2.png"])
    with pytest.raises(MlflowException, match=r"row 0: '0\.png' may be a path, but this server reads none"):
        mlflow.pyfunc.load_model(registered.uri).predict(paths)
    monkeypatch.setenv(variable("pictures"), "data/pictures")
    assert mlflow.pyfunc.load_model(registered.uri).predict(paths) == adapter_answers


def test_refusal_is_told_with_its_status_and_without_the_request(
    registered: RegisteredVersion, questions: pd.DataFrame
) -> None:
    with pytest.raises(MlflowException) as told:
        mlflow.pyfunc.load_model(registered.uri).predict(questions.assign(question=["What?", "", "Why?"]))
    assert told.value.get_http_status_code() == 422
    told.value.message = f"Failed to predict data '{questions}'"  # as MLflow's server does
    message = "row 1: the question is empty, found '': write what you want to know"
    assert json.loads(told.value.serialize_as_json()) == {"error_code": "INVALID_PARAMETER_VALUE", "message": message}


def test_wrong_limit_is_told_before_any_weight_is_read(
    registered: RegisteredVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable("max_rows"), "many")
    with pytest.raises(SettingsError, match="MGM_LORA_SERVE_MAX_ROWS"):
        mlflow.pyfunc.load_model(registered.uri)
