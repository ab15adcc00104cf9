"""What the runs of a comparison say beside their curves: parameters and figures of each model, and the arms side by side for their parent.

It reads no store.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from mgm_lora.arm_settings import ArmSettings, FullSettings, LoraSettings
from mgm_lora.registry.records import BASE, MERGED, PipelineRecord
from mgm_lora.registry.writing import cost_figures, numbers
from mgm_lora.run_names import trained_params, untrained_params
from mgm_lora.settings import REFERENCE, SUBJECT, SeededTraining

_ARM: TypeAdapter[LoraSettings | FullSettings] = TypeAdapter(ArmSettings)
_OF_SUBJECT = ("score", "retention", "forgetting")
"""With their intervals, in the parent's own figures. Those of each arm would be a section of MLflow's charts each: they are in the table."""


def model_params(record: PipelineRecord, name: str) -> dict[str, str]:
    """What a model's run is told apart by; the merged model has the entries of the adapter in it."""
    if name == MERGED:
        return model_params(record, record.sources.subject) | {"arm": MERGED, "kind": MERGED}
    manifest = record.arms[name].trained_manifest
    if manifest is None:
        return untrained_params(name)
    return trained_params(
        name.rpartition("-")[0],
        arm=_ARM.validate_python(manifest.settings["arm"]),
        training=SeededTraining.model_validate(manifest.settings["training"]),
        step=manifest.details["step"],
    )


def model_figures(record: PipelineRecord, name: str) -> dict[str, float]:
    """A model's scores under their own names, what it keeps of the full fine-tune's of its seed, what it forgot, and what its training took."""
    arm = record.arms[name]
    figures = numbers(arm.figures)
    full = record.arms.get(f"{REFERENCE}-{model_params(record, name)['seed']}")
    if full is not None and full.figures["score"]:
        figures["retention"] = figures["score"] / full.figures["score"]
    if BASE in record.arms and "known" in figures:
        figures["forgetting"] = record.arms[BASE].figures["known"] - figures["known"]
    return figures | cost_figures(arm.cost)


def comparison_figures(comparison: Mapping[str, Any]) -> dict[str, float]:
    """What comparisons are compared by: the figures of LoRA over all seeds."""
    figures = comparison.get("arms", {}).get(SUBJECT, {})
    names = [f"{name}{end}" for name in _OF_SUBJECT for end in ("", "_low", "_high")]
    return {name: float(figures[name]) for name in names if name in figures}


def arms_table(comparison: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A row for each arm over all its seeds, with intervals; what an arm has no figure of is none."""
    arms = comparison.get("arms", {})
    columns = list(dict.fromkeys(name for figures in arms.values() for name in figures))
    return {"arm": list(arms), **{name: [figures.get(name) for figures in arms.values()] for name in columns}}
