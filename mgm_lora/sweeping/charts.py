"""The picture of a sweep: held-out loss against each axis of numbers, and against what a trial costs. It knows no axis by name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgm_lora.sweeping.results import SweepResult, TrialResult

_COSTS = {"trainable_parameters": "trainable parameters", "step_memory_gib": "memory of a step, GiB"}
_LOG_FROM_RATIO = 8.0
_WIDTH, _HEIGHT = 5.5, 4.2  # of a panel, in inches


@dataclass(frozen=True)
class _Panel:
    """What the losses are drawn over."""

    title: str
    places: dict[str, float]
    """By trial's name, those that failed included."""
    is_joined: bool
    """Whether an arm's trials differ in nothing else, so that a line between them means something."""

    @property
    def is_log(self) -> bool:
        low, high = min(self.places.values()), max(self.places.values())
        return low > 0 and high / low >= _LOG_FROM_RATIO


def draw_sweep(result: SweepResult, *, path: Path) -> bool:
    """Writes a PNG, a panel for each thing that differs between trials; writes none, and returns False, where no trial is done."""
    panels = list(_panels(result))
    if not panels or not result.count("done"):
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second, and only here
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        for number, outcome in enumerate(result.arms):
            _draw_arm(
                axes, result.of_arm(outcome.arm), arm=outcome.arm, best=outcome.best, panel=panel, colour=f"C{number}"
            )
        axes.set_xscale("log" if panel.is_log else "linear")
        axes.set_xlabel(panel.title)
        axes.set_ylabel("held-out loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return True


def _panels(result: SweepResult) -> Iterator[_Panel]:
    for axis in result.axes:
        numbers = {trial.name: choice for trial in result.trials if (choice := _number(trial, axis.name)) is not None}
        if len(set(numbers.values())) > 1:
            yield _Panel(axis.entry or axis.name, numbers, is_joined=len(result.axes) == 1)
    if not any(_differs("trainable_parameters", result.of_arm(outcome.arm)) for outcome in result.arms):
        return
    for figure, title in _COSTS.items():
        costs = {trial.name: trial.figures[figure] for trial in result.trials if figure in trial.figures}
        if len(set(costs.values())) > 1:
            yield _Panel(title, costs, is_joined=False)


def _differs(figure: str, trials: Sequence[TrialResult]) -> bool:
    return len({trial.figures[figure] for trial in trials if figure in trial.figures}) > 1


def _number(trial: TrialResult, axis: str) -> float | None:
    choice = trial.choices[axis]
    return None if isinstance(choice, bool | str) else float(choice)


def _draw_arm(
    axes: Any, trials: Sequence[TrialResult], *, arm: str, best: str | None, panel: _Panel, colour: str
) -> None:
    placed = [trial for trial in trials if trial.name in panel.places]
    done = sorted((trial for trial in placed if trial.state == "done"), key=lambda trial: panel.places[trial.name])
    places, losses = [panel.places[trial.name] for trial in done], [trial.loss for trial in done]
    axes.plot(places, losses, "o-" if panel.is_joined else "o", color=colour, label=arm)
    for trial in done:
        if trial.name == best:
            mark = {"markersize": 13, "fillstyle": "none", "markeredgewidth": 2, "color": "black"}
            axes.plot([panel.places[trial.name]], [trial.loss], "o", **mark, label=f"best of {arm}")
    failed = [panel.places[trial.name] for trial in placed if trial.state == "failed"]
    if failed:  # at the upper rim, whatever the losses are
        rim = axes.get_xaxis_transform()
        axes.plot(failed, [0.97] * len(failed), "x", color=colour, transform=rim, label=f"failed, {arm}", clip_on=False)
