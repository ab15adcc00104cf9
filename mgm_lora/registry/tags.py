"""What a version says of itself in MLflow's tags, by fixed names: whoever lists versions reads nothing else. It reads no store."""

from collections.abc import Mapping
from typing import Any

from mgm_lora.arm_settings import LoraSettings
from mgm_lora.artifacts import digest_file
from mgm_lora.registry.records import PipelineRecord
from mgm_lora.settings import SUBJECT

DIGEST_TAG = "adapter_digest"
COMMIT_TAG = "git_commit"
UNKNOWN = "unknown"
FIGURES = (
    "score",
    "score_low",
    "score_high",
    "retention",
    "retention_low",
    "retention_high",
    "forgetting",
    "forgetting_low",
    "forgetting_high",
)
"""Of the adapter in its comparison; a figure that there is none of is `unknown`."""


def make_tags(record: PipelineRecord, *, parent_run: str) -> dict[str, str]:
    """All tags of a version, but what promotions write."""
    manifest = record.adapter_manifest
    points = LoraSettings.model_validate(manifest.settings["arm"]).points()
    ranks = {name: point.rank if point.mode == "lora" else "full" for name, point in points.items()}
    tags = {
        DIGEST_TAG: record.adapter_digest,
        "base": str(manifest.base.get("model")),
        "base_digest": str(manifest.base["digest"]),
        "data_digest": record.data_digest,
        "points": ",".join(points),
        "rank": ",".join(f"{name}={rank}" for name, rank in ranks.items()),
        "merge_precision": str(record.proof.get("precision")),
        "merge_difference": f"{record.proof['max_logit_difference']:.2e}",
        "merge_bound": f"{record.proof['bound']:.2e}",
        "parent_run": parent_run,
        **_figures(record.comparison),
    }
    if record.sources.lock.is_file():
        tags["dvc_lock_digest"] = digest_file(record.sources.lock)
    return tags | _source_tags(record)


def _figures(comparison: Mapping[str, Any]) -> dict[str, str]:
    arm = comparison.get("arms", {}).get(SUBJECT, {})
    return {name: str(arm.get(name, comparison.get(name, UNKNOWN))) for name in FIGURES}


def _source_tags(record: PipelineRecord) -> dict[str, str]:
    if record.source.commit is None:
        return {}
    changes = [*record.source.changed, *(f"{name} (removed)" for name in record.source.removed)]
    return {COMMIT_TAG: record.source.commit, "not_in_commit": ", ".join(changes) or "nothing"}
