"""How runs are found in MLflow's store and figures are written into one: names that MLflow takes, and as many at once as it takes."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, Metric, Param, Run

from mgm_lora.registry.store import Store
from mgm_lora.run_names import COST, HELDOUT_LOSS, LEARNING_RATE, TRAIN_LOSS

_CURVES = {"train": {"loss": TRAIN_LOSS, "learning_rate": LEARNING_RATE}, "heldout": {"loss": HELDOUT_LOSS}}
_LAST_OF_CURVES = {"train_loss": TRAIN_LOSS, "heldout_loss": HELDOUT_LOSS}
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # what MLflow takes at once


def search_runs(store: Store, tag: str, value: str) -> list[Run]:
    """The runs of our experiment with this tag, the newest first."""
    return list(
        store.client.search_runs(
            [store.experiment_id],
            f"tags.`{tag}` = '{value}'",
            order_by=["attributes.start_time DESC"],
            max_results=1000,
        )
    )


def log_in_batches(
    client: MlflowClient, run_id: str, *, metrics: Sequence[Metric], params: Sequence[Param] = ()
) -> None:
    """Writes into a run."""
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
    for start in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])


def curve_metrics(history: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Metric]:
    """A training's `history.json`, under the names that its own run has."""
    now = _now()
    return [
        Metric(metric, float(row[name]), now, int(row["step"]))
        for part, names in _CURVES.items()
        for row in history.get(part, ())
        for name, metric in names.items()
        if name in row
    ]


def last_losses(cost: Mapping[str, float]) -> dict[str, float]:
    """The ends of a training's curves, of its metrics/train, for where the curves aren't known."""
    return {curve: cost[name] for name, curve in _LAST_OF_CURVES.items() if name in cost}


def cost_figures(cost: Mapping[str, float]) -> dict[str, float]:
    """What a training took, of its metrics/train: all but what its curves end with."""
    return {f"{COST}/{name}": value for name, value in cost.items() if name not in _LAST_OF_CURVES}


def as_metrics(
    figures: Mapping[str, float], *, model_id: str | None = None, dataset: Dataset | None = None
) -> list[Metric]:
    """Figures of a run as a whole; those of a logged model too, where it is named, on a data set, where that is."""
    now = _now()
    return [
        Metric(
            re.sub(r"[^/\w.\- :]", "_", figure),
            float(value),
            now,
            0,
            model_id=model_id,
            dataset_name=dataset.name if dataset else None,
            dataset_digest=dataset.digest if dataset else None,
        )
        for figure, value in figures.items()
    ]


def numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested mapping, by their path."""
    return {
        name: value
        for name, value in leaves(figures, "/")
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def leaves(value: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a nested mapping holds, by its path."""
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from leaves(entry, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", entry


def _now() -> int:
    return int(time.time() * 1000)
