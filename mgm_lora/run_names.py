"""What MLflow's runs are told apart by: tags, parameters and curves, under the same names for every arm, whoever writes the run.

MLflow's pages set runs side by side by equal names, and put values on an axis where all of them are numbers. So an arm without a low-rank update has
rank 0, and an untrained model a learning rate of 0: both are true. The settings as they are lie in the run as `settings.json`. It knows no MLflow.
"""

from collections.abc import Mapping
from typing import Any

from mgm_lora.arm_settings import ArmSettings, FullSettings, LoraSettings, PointSettings
from mgm_lora.settings import SeededTraining

PARENT_TAG = "mlflow.parentRunId"
MODEL_TAG = "mgm_lora.model"
"""Which model of the comparison a run is of: `lora-17`, `base`."""
KEY_TAG = "mgm_lora.training_key"
EXPERIMENT_TAG = "mgm_lora.experiment"
"""The DVC experiment that a training is of: a sweep's trial."""
ARM_TAG, SEED_TAG, KIND_TAG, ROLE_TAG = "arm", "seed", "kind", "role"
"""For people to filter and group by: `tags.arm = 'lora'`."""
PIPELINE, ARM, SWEEP, TRIAL = "pipeline", "arm", "sweep", "trial"
"""The roles: a comparison and the models in it, a sweep and the trials in it."""

TRAIN_LOSS, HELDOUT_LOSS, LEARNING_RATE = "train/loss", "heldout/loss", "train/learning_rate"
GRADIENT_NORM, SPEED = "train/gradient_norm", "train/samples_per_second"
"""Curves, by optimizer step. MLflow's charts have a section for what stands before the slash."""
COST = "cost"
"""Before the slash, what a training took as a whole."""
SETTINGS_FILE = "settings.json"

NONE = "none"
_UNTRAINED = {
    "method": NONE,
    "rank": "0",
    "alpha": "0",
    "dropout": "0",
    "loraplus_ratio": "1",
    "points": NONE,
    "whole_parts": NONE,
    "learning_rate": "0",
    "other_learning_rates": NONE,
    "epochs": "0",
    "global_batch_size": "0",
    "micro_batch_size": "0",
    "schedule": NONE,
    "warmup_share": "0",
    "weight_decay": "0",
    "optimizer": NONE,
    "checkpointing": NONE,
    "quantization": NONE,
    "precision": NONE,
}
PARAM_NAMES = ("arm", "seed", "kind", *_UNTRAINED)
"""Of every run of a model, in this order in docs/mlflow.md."""


def trained_params(
    arm_name: str, *, arm: ArmSettings, training: SeededTraining, step: Mapping[str, Any]
) -> dict[str, str]:
    """The parameters of a training's run.

    Args:
        step: how its step is run, as far as it is known: the plan's choices, by the names of `StepSettings`.
    """
    way = {**arm.step.model_dump(mode="json"), **step}
    shared = {
        "arm": arm_name,
        "seed": str(training.seed),
        "kind": arm.kind,
        "learning_rate": _text(arm.learning_rate),
        "epochs": _text(training.num_epochs),
        "global_batch_size": str(training.global_batch_size),
        "micro_batch_size": str(way["micro_batch_size"]),
        "schedule": training.schedule,
        "warmup_share": _text(training.warmup_share),
        "weight_decay": _text(training.weight_decay),
        "optimizer": str(way["optimizer"]),
        "checkpointing": _listed(way["checkpointing"]),
        "quantization": str(way["quantization"]),
        "precision": training.precision,
    }
    return _UNTRAINED | shared | (_of_adapter(arm) if isinstance(arm, LoraSettings) else _of_whole(arm))


def untrained_params(name: str) -> dict[str, str]:
    """Likewise of a model that was not trained: the base."""
    return {"arm": name, "seed": NONE, "kind": name} | _UNTRAINED


def name_tags(params: Mapping[str, str], *, model: str, role: str) -> dict[str, str]:
    """The tags of a model's run: which model, and what people filter by.

    Args:
        params: of that run.
        model: `lora-17`.
        role: ARM or TRIAL.
    """
    return {
        MODEL_TAG: model,
        ARM_TAG: params["arm"],
        SEED_TAG: params["seed"],
        KIND_TAG: params["kind"],
        ROLE_TAG: role,
    }


def _of_adapter(arm: LoraSettings) -> dict[str, str]:
    points = arm.points()
    low_rank = {name: point for name, point in points.items() if point.mode == "lora"}
    rates = {name: point.learning_rate for name, point in points.items() if point.learning_rate is not None}
    values = {
        entry: _common(
            {name: _text(getattr(point, entry)) for name, point in low_rank.items()}, empty=_UNTRAINED[entry]
        )
        for entry in ("method", "rank", "alpha", "dropout", "loraplus_ratio")
    }
    return values | {
        "points": _listed(f"{name}{_layers(point)}" for name, point in low_rank.items()),
        "whole_parts": _listed(f"{name}{_layers(point)}" for name, point in points.items() if point.mode == "full"),
        "other_learning_rates": _by_name({name: _text(rate) for name, rate in rates.items()}),
    }


def _of_whole(arm: FullSettings) -> dict[str, str]:
    rates: dict[str, str] = {name: _text(rate) for name, rate in arm.learning_rates.items()}
    return {"whole_parts": _listed(arm.parts), "other_learning_rates": _by_name(rates)}


def _common(values: Mapping[str, str], *, empty: str) -> str:
    """The value that all have; where they differ, each with its name."""
    if not values:
        return empty
    return next(iter(values.values())) if len(set(values.values())) == 1 else _by_name(values)


def _by_name(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or NONE


def _listed(values: Any) -> str:
    return values if isinstance(values, str) else ", ".join(values) or NONE


def _layers(point: PointSettings) -> str:
    return "" if point.layers is None else f"[{point.layers[0]}-{point.layers[1]}]"


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
