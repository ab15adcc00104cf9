"""Data for `dvc plots`: JSON lists of records, one file per curve.

DVC overlays files, not groups within a file, so each arm has its own.
"""

from collections.abc import Mapping
from pathlib import Path

from mgm_lora.artifacts import write_json
from mgm_lora.evaluation.confusion import confuse
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.evaluation.scoring import scored
from mgm_lora.evaluation.sources import Arm
from mgm_lora.settings import EvaluationSettings


def write_plots(
    folder: Path, *, arms: Mapping[str, Arm], evaluation: EvaluationSettings, scores: Mapping[str, Estimate]
) -> None:
    """Writes `scores.json`, and per trained arm `train-loss-`, `heldout-loss-` and `confusion-<arm>.json`.

    The confusion is over all scored types, cut to the most frequent truths.
    """
    write_json(
        folder / "scores.json",
        [{"arm": name, "score": item.value, "low": item.low, "high": item.high} for name, item in scores.items()],
    )
    for name, arm in arms.items():
        if arm.history is None:
            continue
        write_json(folder / f"train-loss-{name}.json", [point.model_dump() for point in arm.history.train])
        write_json(folder / f"heldout-loss-{name}.json", [point.model_dump() for point in arm.history.heldout])
        write_json(folder / f"confusion-{name}.json", _confusion_records(arm, evaluation))


def _confusion_records(arm: Arm, evaluation: EvaluationSettings) -> list[dict[str, str]]:
    confusion = confuse(scored(arm.predictions, evaluation=evaluation))
    return [
        {"truth": truth, "answer": answer}
        for truth, row in zip(confusion.truths, confusion.counts, strict=True)
        for answer, number in zip(confusion.answers, row, strict=True)
        for _ in range(number)
    ]
