"""One row per arm: what it scores, keeps and forgets beside the others, and what it took.

It doesn't know how a row looks, nor what is claimed of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import mean

from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.evaluation.predictions import of_set
from mgm_lora.evaluation.scoring import scored
from mgm_lora.evaluation.sources import BASELINE, Arm, TrainingCost
from mgm_lora.settings import REFERENCE, EvaluationSettings


@dataclass(frozen=True)
class Cost:
    """What an arm took; none where it has no training of its own, or where the machine doesn't tell."""

    trainable_parameters: int | None = None
    trainable_share: float | None = None
    """Of all parameters, 0 to 1."""
    planned_memory_gib: float | None = None
    """What the plan says that a step on the data's largest batch holds."""
    step_memory_gib: float | None = None
    """What such a step held."""
    seconds_per_step: float | None = None
    """Of an optimizer step; of one training, and so below, the mean."""
    samples_per_second: float | None = None
    minutes: float | None = None
    energy_wh: float | None = None
    """What the cards took, in watt-hours."""
    size_on_disk_mib: float | None = None


@dataclass(frozen=True)
class ArmRow:
    """One row of the table; every score is the mean over the arm's trainings."""

    name: str
    score: Estimate
    by_type: Mapping[str, Estimate]
    """On held-out samples, every question type, scored or not."""
    seed_scores: tuple[float, ...]
    """Of each training."""
    retention: Estimate | None
    """Score over the full fine-tune's; none for the base and the full fine-tune, or where that is right too rarely."""
    retention_by_type: Mapping[str, Estimate]
    difference: Estimate | None
    """Score minus the full fine-tune's; none for that itself."""
    p_value: float | None
    """Of "the arm and the full fine-tune are worth the same", paired on the same pictures."""
    forgetting: Estimate | None
    """Score on `known` of the base minus the arm's; none for the base, or where nothing is known."""
    loss: Estimate | None
    """Mean loss of a token of the true answers where the score was taken, in nats."""
    known_loss: Estimate | None
    """Likewise on `known`."""
    loss_rise: Estimate | None
    """That minus the base's: forgetting that answers don't show yet; none for the base."""
    cost: Cost

    def metrics(self) -> dict[str, float]:
        """All figures but those by type, by name; what there is none of is left out."""
        estimates = {
            "score": self.score,
            "retention": self.retention,
            "difference": self.difference,
            "forgetting": self.forgetting,
            "loss": self.loss,
            "known_loss": self.known_loss,
            "loss_rise": self.loss_rise,
        }
        numbers: dict[str, float | None] = {"p_value": self.p_value, **asdict(self.cost)}
        return {
            **{name: value for label, estimate in estimates.items() for name, value in flat(label, estimate).items()},
            **{name: value for name, value in numbers.items() if value is not None},
        }


def make_row(arm: Arm, *, arms: Mapping[str, Arm], evaluation: EvaluationSettings) -> ArmRow:
    """The row of one of `arms`."""
    mine, theirs = answers_in_score(arm, evaluation), answers_in_score(arms[REFERENCE], evaluation)
    is_compared = arm.name != REFERENCE
    has_retention = arm.name not in (BASELINE, REFERENCE)
    known, before = _known(arm), _known(arms[BASELINE]) if arm.name != BASELINE else None
    return ArmRow(
        name=arm.name,
        score=mine.share(evaluation),
        by_type=_by_type(arm, evaluation),
        seed_scores=tuple(run.scores.score.value for run in arm.runs),
        retention=mine.over(theirs, evaluation) if has_retention else None,
        retention_by_type=_retention_by_type(mine, theirs, evaluation) if has_retention else {},
        difference=mine.minus(theirs, evaluation) if is_compared else None,
        p_value=mine.p_value(theirs, evaluation) if is_compared else None,
        forgetting=before.minus(known, evaluation) if before and known else None,
        loss=mine.loss(evaluation),
        known_loss=known.loss(evaluation) if known else None,
        loss_rise=known.loss_minus(before, evaluation) if before and known else None,
        cost=_cost(arm),
    )


def answers_in_score(arm: Arm, evaluation: EvaluationSettings) -> Answers:
    """An arm's answers to the questions that are in the score."""
    return Answers([scored(run.predictions, evaluation=evaluation) for run in arm.runs])


def flat(name: str, estimate: Estimate | None) -> dict[str, float]:
    """`name`, `name_low`, `name_high`; nothing where there is no estimate."""
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _known(arm: Arm) -> Answers | None:
    answers = Answers([of_set(run.predictions, "known") for run in arm.runs])
    return answers if answers.items[0] else None


def _by_type(arm: Arm, evaluation: EvaluationSettings) -> dict[str, Estimate]:
    heldout = Answers([of_set(run.predictions, "heldout") for run in arm.runs])
    return {name: heldout.of_type(name).share(evaluation) for name in heldout.types()}


def _retention_by_type(mine: Answers, theirs: Answers, evaluation: EvaluationSettings) -> dict[str, Estimate]:
    ratios = {name: mine.of_type(name).over(theirs.of_type(name), evaluation) for name in mine.types()}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _cost(arm: Arm) -> Cost:
    costs = [run.cost for run in arm.runs if run.cost]
    if not costs:
        return Cost(size_on_disk_mib=arm.first.size_on_disk_mib)
    first = costs[0]
    return Cost(
        trainable_parameters=first.trainable_parameters,
        trainable_share=first.trainable_share,
        planned_memory_gib=first.planned_memory_gib,
        step_memory_gib=first.step_memory_gib,
        seconds_per_step=_mean(costs, "seconds_per_step"),
        samples_per_second=_mean(costs, "samples_per_second"),
        minutes=_mean(costs, "minutes"),
        energy_wh=_mean(costs, "energy_wh"),
        size_on_disk_mib=arm.first.size_on_disk_mib,
    )


def _mean(costs: list[TrainingCost], name: str) -> float | None:
    """None unless every training tells it: a mean over some would be another thing."""
    values = [getattr(cost, name) for cost in costs]
    return None if any(value is None for value in values) else mean(values)
