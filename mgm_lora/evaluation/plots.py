"""Data for `dvc plots`: JSON lists of records, each with its arm, which our templates tell apart by colour."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mgm_lora.artifacts import write_json
from mgm_lora.evaluation.confusion import confuse
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.evaluation.scoring import scored
from mgm_lora.evaluation.sources import Arm
from mgm_lora.settings import EvaluationSettings


def write_plots(
    folder: Path, *, arms: Mapping[str, Arm], evaluation: EvaluationSettings, scores: Mapping[str, Estimate]
) -> None:
    """Writes `scores.json`, `train-loss.json` and `heldout-loss.json` of all trainings, and `confusion-<arm>.json` of each arm's first.

    The confusion is over all scored types, cut to the most frequent truths.
    """
    write_json(
        folder / "scores.json",
        [{"arm": name, "score": item.value, "low": item.low, "high": item.high} for name, item in scores.items()],
    )
    for part in ("train", "heldout"):
        write_json(folder / f"{part}-loss.json", _loss_records(arms, part))
    for name, arm in arms.items():
        if arm.first.history is not None:
            write_json(folder / f"confusion-{name}.json", _confusion_records(arm, evaluation))


def _loss_records(arms: Mapping[str, Arm], part: Literal["train", "heldout"]) -> list[dict[str, Any]]:
    return [
        {"arm": name, "seed": run.seed, **point.model_dump()}
        for name, arm in arms.items()
        for run in arm.runs
        if run.history is not None
        for point in (run.history.train if part == "train" else run.history.heldout)
    ]


def _confusion_records(arm: Arm, evaluation: EvaluationSettings) -> list[dict[str, str]]:
    confusion = confuse(scored(arm.first.predictions, evaluation=evaluation))
    return [
        {"truth": truth, "answer": answer}
        for truth, row in zip(confusion.truths, confusion.counts, strict=True)
        for answer, number in zip(confusion.answers, row, strict=True)
        for _ in range(number)
    ]
