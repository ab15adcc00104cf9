"""The registered model: an adapter that finds its base, checks that it is the one it was trained on, and answers.

MLflow loads it by `pyfunc_model.py`. The base's weights are not in the version: they are large, and often not ours to
copy. It answers by the same code as `mgm-lora ask`. torch is imported when a version is loaded, not when one is made.
"""

import base64
import binascii
import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mgm_lora.errors import CheckpointError, DataError, PictureError
from mgm_lora.settings import BaseSettings

if TYPE_CHECKING:
    from mgm_lora.model.answering import Question
    from mgm_lora.model.base import Base

ADAPTER_ARTIFACT = "adapter"
BASE_VARIABLE = "MGM_LORA_BASE"
PICTURE_COLUMN, QUESTION_COLUMN = "picture", "question"
_PICTURE_MARKER = "<image>"


class AnsweringModel(PythonModel):
    """Answers questions about pictures: columns `picture` and `question` in, a list of answers out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads base and adapter.

        Raises:
            CheckpointError: the base isn't where the version says, nor where MGM_LORA_BASE does.
            BaseChangedError: it is another base than the adapter was trained on.
        """
        from mgm_lora.lora.adapter import load_adapter

        base = _find_base(context.model_config["base"])
        folder = Path(context.artifacts[ADAPTER_ARTIFACT])
        self._model = load_adapter(base.load(), folder=folder, base_digest=base.digest)
        self._processor = base.processor()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Greedy answers, in the rows' order.

        Args:
            context: MLflow's.
            model_input: `picture` is a path, a data URL, base64 or bytes; empty for a question without a picture.
            params: `max_new_tokens`, where it is not to be the evaluation's.

        Raises:
            PictureError: a picture is none of these, or can't be read.
        """
        from mgm_lora.model.answering import answer_questions

        settings = {**context.model_config["answers"], **(params or {})}
        with TemporaryDirectory(prefix="mgm-lora-") as folder:
            return answer_questions(
                self._model,
                processor=self._processor,
                questions=read_questions(model_input, folder=Path(folder)),
                batch_size=int(settings["batch_size"]),
                max_new_tokens=int(settings["max_new_tokens"]),
            )


def read_questions(rows: pd.DataFrame, *, folder: Path) -> list["Question"]:
    """Questions of a table's rows; pictures that are given as bytes become files in `folder`."""
    from mgm_lora.model.answering import Question

    questions = []
    for row, (picture, text) in enumerate(zip(rows[PICTURE_COLUMN], rows[QUESTION_COLUMN], strict=True)):
        if not isinstance(text, str):
            raise DataError(f"row {row}: asked for a question's text, found {type(text).__name__}")
        pictures = _picture_files(picture, file=folder / str(row), row=row)
        marked = f"{_PICTURE_MARKER}\n{text}" if pictures and _PICTURE_MARKER not in text else text
        questions.append(Question(turns=(("human", marked),), pictures=tuple(pictures)))
    return questions


def _find_base(recorded: dict[str, Any]) -> "Base":
    from mgm_lora.model.base import find_base

    place = os.environ.get(BASE_VARIABLE)
    settings = BaseSettings(**({**recorded, "model": place, "revision": None} if place else recorded))
    try:
        return find_base(settings)
    except CheckpointError as error:
        raise CheckpointError(
            f"the registered adapter needs its base: {error}. Load it where '{recorded['model']}' can be found, or set"
            f" {BASE_VARIABLE} to the base's folder or hub id"
        ) from error


def _picture_files(value: object, *, file: Path, row: int) -> Sequence[Path]:
    if isinstance(value, bytes):
        file.write_bytes(value)
        return [file]
    if isinstance(value, str) and value:
        content = _decode(value, row=row)
        if content is None:
            return [Path(value)]
        file.write_bytes(content)
        return [file]
    if value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value)):
        return []
    raise PictureError(f"row {row}: asked for a picture's path, base64 or bytes, found {type(value).__name__}")


def _decode(text: str, *, row: int) -> bytes | None:
    """The bytes of a data URL or of base64; None for a path."""
    is_url = text.startswith("data:")
    if not is_url and _is_file(text):
        return None
    try:
        return base64.b64decode(text.partition(",")[2] if is_url else text, validate=True)
    except binascii.Error as error:
        if is_url:
            raise PictureError(f"row {row}: the data URL '{text[:40]}' does not hold base64: {error}") from error
        return None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # base64 is too long for a name
        return False
