"""Makes the folder of a registered version: adapter, code, signature, example, exact requirements, evidence; no base.

Nothing is loaded for it: MLflow would run the model to guess the requirements and to try the example. It doesn't know
MLflow's store.
"""

import base64
import io
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType
from packaging.version import Version
from PIL import Image

from mgm_lora.errors import ArtifactError
from mgm_lora.registry.answering_model import ADAPTER_ARTIFACT
from mgm_lora.registry.evidence import FOLDER, write_evidence
from mgm_lora.registry.records import PipelineRecord
from mgm_lora.serving.columns import PICTURE_COLUMN, QUESTION_COLUMN

REQUIREMENTS = (
    "accelerate",
    "huggingface_hub",
    "mlflow",
    "numpy",
    "pandas",
    "bitsandbytes",
    "peft",
    "pillow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
    "urllib3",
)
_PACKAGE = Path(__file__).parents[1]
_EXAMPLE_SIDE = 336


def pack_model(record: PipelineRecord, *, mlflow_model: Model, destination: Path) -> None:
    """Writes the version's folder."""
    answers = record.arms[record.sources.subject].scores_manifest.settings["evaluation"]
    answers = {"batch_size": answers["batch_size"], "max_new_tokens": answers["max_new_tokens"]}
    mlflow.pyfunc.save_model(
        path=destination,
        python_model=str(_PACKAGE / "registry" / "pyfunc_model.py"),
        artifacts={ADAPTER_ARTIFACT: str(record.adapter)},
        code_paths=[str(_PACKAGE)],
        signature=_signature(answers),
        input_example=make_example(record),
        pip_requirements=[f"{name}=={Version(version(name)).public}" for name in REQUIREMENTS],
        model_config={"base": record.adapter_manifest.settings["base"], "answers": answers},
        mlflow_model=mlflow_model,
    )
    for folder in list(destination.rglob("__pycache__")):
        shutil.rmtree(folder)
    write_evidence(record, folder=destination / FOLDER)


def make_example(record: PipelineRecord) -> pd.DataFrame:
    """The first held-out question that has a picture, with the picture in it, shrunk where it is large."""
    path = record.arms[record.sources.subject].scores / "predictions.parquet"
    rows = pd.read_parquet(path, columns=["set", "question", "pictures"])
    rows = rows[(rows["set"] == "heldout") & (rows["pictures"].str.len() > 0)]
    if rows.empty:
        raise ArtifactError(
            f"'{path}' holds no held-out question with a picture to show as an example: run `dvc repro`"
        )
    pictures = Path(record.adapter_manifest.settings["data"]["pictures"])
    picture = _data_url(pictures / rows["pictures"].iloc[0][0])
    return pd.DataFrame({PICTURE_COLUMN: [picture], QUESTION_COLUMN: [rows["question"].iloc[0]]})


def _signature(answers: dict[str, Any]) -> ModelSignature:
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), PICTURE_COLUMN, required=False), ColSpec("string", QUESTION_COLUMN)]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema([ParamSpec("max_new_tokens", "integer", answers["max_new_tokens"])]),
    )


def _data_url(path: Path) -> str:
    try:
        with Image.open(path) as picture:
            picture.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG")
    except OSError as error:
        raise ArtifactError(f"the example's picture '{path}' can't be read ({error}): run `dvc pull`") from error
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
