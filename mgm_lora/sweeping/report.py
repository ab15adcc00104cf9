"""A sweep's result as people read it: Markdown with every trial, and a picture beside it. It doesn't know how trials are run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mgm_lora.artifacts import new_file
from mgm_lora.sweeping.charts import draw_sweep
from mgm_lora.sweeping.results import ArmOutcome, SweepResult, TrialResult
from mgm_lora.sweeping.trials import choice_text

_NOTHING = "–"
_MAX_WORDS = 300


def write_report(result: SweepResult, *, markdown: Path, picture: Path) -> None:
    """Writes both files; there is no picture while no trial is done."""
    has_picture = draw_sweep(result, path=picture)
    with new_file(markdown) as temporary:
        lines = sweep_lines(result, picture=picture.name if has_picture else None)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sweep_lines(result: SweepResult, *, picture: str | None) -> list[str]:
    """The Markdown, line by line."""
    lines = [f"# Sweep {result.name}", "", result.about, "", _state(result), ""]
    if picture:
        lines += [f"![held-out loss of every trial]({picture})", ""]
    for outcome in result.arms:
        trials = result.of_arm(outcome.arm)
        lines += [f"## {outcome.arm}", "", *(f"{line}\n" for line in outcome_lines(outcome, trials=trials))]
        lines += [*_table(result, outcome=outcome, trials=trials), ""]
        lines += [f"- **{choices_text(trial)}** failed: {_one_line(trial.words)}" for trial in _failed(trials)]
        lines += [""] if _failed(trials) else []
    return lines


def outcome_lines(outcome: ArmOutcome, *, trials: Sequence[TrialResult]) -> list[str]:
    """In sentences: who is best, who equals it, and whether better ones may lie beyond what was tried."""
    if outcome.best is None:
        return ["No trial is done, so nobody is best."]
    named = {trial.name: trial for trial in trials}
    best = named[outcome.best]
    lines = [f"Best: {choices_text(best)}, with a held-out loss of {best.loss:.4g}."]
    if outcome.ties:
        equals = "; ".join(choices_text(named[name]) for name in outcome.ties)
        lines.append(f"The same loss: {equals}. Of equals the one with the fewest parameters is taken, then the first.")
    lines += [
        f"The best {axis} is the {end} that was tried: better ones may lie beyond. Widen {axis} and sweep again."
        for axis, end in outcome.at_the_edge.items()
    ]
    return lines


def choices_text(trial: TrialResult) -> str:
    """rank 8, points all."""
    return ", ".join(f"{axis} {choice_text(choice)}" for axis, choice in trial.choices.items())


def _state(result: SweepResult) -> str:
    counts = [f"{result.count(state)} {state}" for state in ("done", "failed", "waiting") if result.count(state)]
    seeds = " and ".join(str(seed) for seed in sorted({trial.seed for trial in result.trials}))
    return (
        f"{len(result.trials)} trials ({result.search} search): {', '.join(counts)}. From commit {result.commit[:10]}, each trained with seed"
        f" {seeds} alone: what another seed would change is not in these figures."
    )


def _table(result: SweepResult, *, outcome: ArmOutcome, trials: Sequence[TrialResult]) -> Iterator[str]:
    axes = [axis.name for axis in result.axes]
    scored = ["score"] if result.evaluate else []
    yield _row([*axes, "held-out loss", *scored, "parameters", "share", "step memory", "minutes", "state"])
    yield _row(["---"] * (len(axes) + len(scored) + 6))
    for trial in sorted(trials, key=_order):
        is_best = trial.name == outcome.best
        cells = [choice_text(trial.choices[axis]) for axis in axes]
        cells.append(_figure(trial, "heldout_loss", ".4g"))
        cells += [_score(trial)] if result.evaluate else []
        cells += [_figure(trial, "trainable_parameters", ",.0f"), _figure(trial, "trainable_share", ".1%")]
        cells += [_figure(trial, "step_memory_gib", ".3g", unit=" GiB"), _figure(trial, "minutes", ".3g")]
        cells.append("**best**" if is_best else trial.state)
        yield _row([f"**{cell}**" if is_best and cell != "**best**" else cell for cell in cells])


def _order(trial: TrialResult) -> tuple[int, float]:
    """The done ones by loss, then those that failed, then those that wait."""
    if trial.state == "done":
        return 0, trial.loss
    return (1, 0.0) if trial.state == "failed" else (2, 0.0)


def _score(trial: TrialResult) -> str:
    if "score" not in trial.scores:
        return _NOTHING
    low, high = trial.scores.get("score_low"), trial.scores.get("score_high")
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * trial.scores['score']:.1f} %{interval}"


def _figure(trial: TrialResult, name: str, form: str, *, unit: str = "") -> str:
    return f"{trial.figures[name]:{form}}{unit}" if name in trial.figures else _NOTHING


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _failed(trials: Sequence[TrialResult]) -> list[TrialResult]:
    return [trial for trial in trials if trial.state == "failed"]


def _one_line(words: str) -> str:
    line = " ".join(words.split()).replace("|", "\\|")
    return line if len(line) <= _MAX_WORDS else f"{line[:_MAX_WORDS]}…"
