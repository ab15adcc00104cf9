"""The registered model: an adapter that finds its base, checks that it is the one it was trained on, and answers.

MLflow loads it by `pyfunc_model.py`, in a server as in a script. The base's weights are not in the version: they are large, and often not ours
to copy. It answers by the same code as `mgm-lora ask`, within the limits of `mgm_lora.serving`. torch is imported when a version is loaded, not
when one is made.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mgm_lora.errors import CheckpointError, RefusedError
from mgm_lora.settings import BaseSettings

if TYPE_CHECKING:
    from mgm_lora.model.base import Base

ADAPTER_ARTIFACT = "adapter"
BASE_VARIABLE = "MGM_LORA_BASE"


class RequestRefusedError(MlflowException):
    """A refusal in the only form that MLflow's server takes a status from."""

    def __init__(self, refusal: RefusedError) -> None:
        """Of a refusal, with its status and words."""
        super().__init__(str(refusal))
        self._refusal = refusal

    def get_http_status_code(self) -> int:
        """The refusal's, not MLflow's for an error code: it has none for 413, 415, 422."""
        return self._refusal.status

    def serialize_as_json(self) -> str:
        """One sentence: the server has put the whole request before it in `message`."""
        from mgm_lora.serving.refusals import refusal_body

        return json.dumps(refusal_body(self._refusal))


class AnsweringModel(PythonModel):
    """Answers questions about pictures: columns `picture` and `question` in, a list of answers out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads base and adapter.

        Raises:
            SettingsError: the environment asks for limits that are none.
            CheckpointError: the base isn't where the version says, nor where MGM_LORA_BASE does.
            BaseChangedError: it is another base than the adapter was trained on.
        """
        from mgm_lora.lora.adapter import adapter_quantization, load_adapter
        from mgm_lora.serving.admission import Admission
        from mgm_lora.serving.limits import read_limits

        self._limits = read_limits(os.environ)
        self._admission = Admission(self._limits.max_requests)
        base = _find_base(context.model_config["base"])
        folder = Path(context.artifacts[ADAPTER_ARTIFACT])
        model = base.load(quantization=adapter_quantization(folder))
        self._model = load_adapter(model, folder=folder, base_digest=base.digest)
        self._processor = base.processor()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Greedy answers, in the rows' order; may be called from several threads.

        Args:
            context: MLflow's.
            model_input: `picture` is base64, a data URL, bytes, an allowed host's URL or a path below the allowed folder; empty or left out
                for a question without a picture.
            params: `max_new_tokens`, where it is not to be the evaluation's.

        Raises:
            RequestRefusedError: with the status and words that a server tells.
        """
        from mgm_lora.serving.refusals import as_refusal

        answers = context.model_config["answers"]
        asked = (params or {}).get("max_new_tokens", answers["max_new_tokens"])
        try:
            return self._answer(
                model_input, batch_size=answers["batch_size"], asked=asked, default=answers["max_new_tokens"]
            )
        except Exception as error:  # MLflow would tell the inside of whatever comes
            raise RequestRefusedError(as_refusal(error)) from error

    def _answer(self, table: pd.DataFrame, *, batch_size: int, asked: int, default: int) -> list[str]:
        from mgm_lora.model.answering import answer_questions
        from mgm_lora.serving.rows import make_questions, read_rows, tokens_to_make

        limits = self._limits
        max_new_tokens = tokens_to_make(asked, default=default, limits=limits)
        with self._admission.admit(), TemporaryDirectory(prefix="mgm-lora-") as folder:
            rows = read_rows(table, limits=limits)
            with self._admission.turn():
                questions = make_questions(rows, processor=self._processor, limits=limits, folder=Path(folder))
                return answer_questions(
                    self._model,
                    processor=self._processor,
                    questions=questions,
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                )


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
