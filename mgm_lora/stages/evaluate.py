"""The stages `evaluate`: one model asked the held-out questions and those on what the base knew, and scored."""

from dataclasses import asdict
from pathlib import Path

from mgm_lora.artifacts import digest_folder
from mgm_lora.data.table import Sample
from mgm_lora.errors import SettingsError
from mgm_lora.evaluation.learned import WeightUpdate
from mgm_lora.evaluation.metrics import METRICS
from mgm_lora.evaluation.predictions import make_predictions
from mgm_lora.evaluation.scoring import Scores, read_table, write_scores
from mgm_lora.lora.updates import measure_updates
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.base import find_base
from mgm_lora.model.text_loss import Conversation, text_losses
from mgm_lora.settings import DataSettings, Settings
from mgm_lora.stages import paths
from mgm_lora.stages.models import load_named


def run(settings: Settings, *, model_name: str, seed: int | None = None) -> Scores:
    """Writes artifacts/scores/<name> and metrics/scores/<name>.json.

    Args:
        model_name: base, merged, or an arm of the settings.
        seed: which of the arm's trainings; none: the first of comparison.seeds.
    """
    name = model_name
    if model_name not in paths.UNTRAINED:
        _check_arm(model_name, settings)
        name = paths.run_name(model_name, settings.comparison.seeds[0] if seed is None else seed)
    base = find_base(settings.base)
    processor = base.processor()
    model, parents = load_named(name, base=base)
    predictions = []
    for set_name, samples in read_table(paths.SAMPLES).items():
        answers = answer_questions(
            model,
            processor=processor,
            questions=[_question(sample, settings.data) for sample in samples],
            batch_size=settings.evaluation.batch_size,
            max_new_tokens=settings.evaluation.max_new_tokens,
            label=f"{name}, {set_name}",
        )
        losses = text_losses(
            model,
            processor=processor,
            conversations=[_conversation(sample, settings.data) for sample in samples],
            batch_size=settings.evaluation.batch_size,
            label=f"{name}, {set_name}, text loss",
        )
        predictions += make_predictions(
            samples, answers=answers, losses=losses, set_name=set_name, metric=METRICS[settings.evaluation.metric]
        )
    del model  # what follows loads its own
    updates = [] if model_name in paths.UNTRAINED else measure_updates(paths.model_folder(name), base=base)
    return write_scores(
        predictions,
        arm=name,
        samples=paths.SAMPLES,
        evaluation=settings.evaluation,
        parents={"samples": digest_folder(paths.SAMPLES), **parents},
        base=base.identity,
        updates=[WeightUpdate(**asdict(update)) for update in updates],
        destination=paths.SCORES / name,
        metrics=paths.SCORE_METRICS / f"{name}.json",
    )


def _check_arm(name: str, settings: Settings) -> None:
    if name not in settings.arms:
        known = ", ".join((*paths.UNTRAINED, *settings.arms))
        raise SettingsError(f"no model '{name}': there are {known}; name one of these, or add an arm to params.yaml")


def _question(sample: Sample, data: DataSettings) -> Question:
    return Question(turns=tuple(sample.question), pictures=_pictures(sample, data))


def _conversation(sample: Sample, data: DataSettings) -> Conversation:
    return Conversation(turns=tuple(sample.turns), pictures=_pictures(sample, data))


def _pictures(sample: Sample, data: DataSettings) -> tuple[Path, ...]:
    return tuple(data.pictures / name for name in sample.pictures)
