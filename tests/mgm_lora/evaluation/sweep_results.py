"""Results of a sweep over the rank of `lora`, as tests of what reads them need them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgm_lora.sweeping.results import Asked, AxisInfo, SweepResult, TrialResult, judge, write_sweep

ASKED = Asked(samples="ab" * 32, base="cd" * 32, evaluation={"metric": "exact", "batch_size": 64})


def done(
    *, rank: int, loss: float = 1.0, score: float | None = 0.4, step_memory_gib: float | None = 1.5
) -> TrialResult:
    """A trial that came to its end; no score: it was asked nothing."""
    figures = {"heldout_loss": loss, "minutes": 2.0, "planned_memory_gib": 1.75, "trainable_parameters": 1000.0 * rank}
    figures |= {} if step_memory_gib is None else {"step_memory_gib": step_memory_gib}
    scores = {} if score is None else {"score": score, "score_low": score - 0.05, "score_high": score + 0.05}
    return _trial(rank, state="done", figures=figures, scores=scores)


def failed(*, rank: int, words: str) -> TrialResult:
    """A trial that failed by itself."""
    return _trial(rank, state="failed", exit_code=3, words=words)


def waiting(*, rank: int) -> TrialResult:
    """A trial that is still to be run."""
    return _trial(rank)


def write_result(folder: Path, trials: Sequence[TrialResult], *, asked: Asked | None = ASKED) -> None:
    """Writes `ranks.json`."""
    result = SweepResult(
        name="ranks",
        about="ranks of lora",
        search="grid",
        evaluate=True,
        commit="0" * 40,
        axes=(AxisInfo(name="rank", entry="arm.rank"),),
        trials=tuple(trials),
        arms=judge(["lora"], trials),
        asked=asked,
    )
    write_sweep(result, folder / "ranks.json")


def _trial(rank: int, **found: Any) -> TrialResult:
    entries = {"arms.lora.rank": rank}
    return TrialResult(name=f"ranks-lora-{rank}", arm="lora", seed=17, choices={"rank": rank}, entries=entries, **found)
