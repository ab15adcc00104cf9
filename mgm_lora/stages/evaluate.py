"""The stage `evaluate`: one arm asked the held-out questions and those on what the base knew, and scored."""

from mgm_lora.artifacts import digest_folder
from mgm_lora.data.table import Sample
from mgm_lora.evaluation.predictions import make_predictions
from mgm_lora.evaluation.scoring import Scores, read_table, write_scores
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.base import find_base
from mgm_lora.settings import DataSettings, Settings
from mgm_lora.stages import paths
from mgm_lora.stages.models import load_arm


def run(settings: Settings, *, arm: str) -> Scores:
    """Writes artifacts/scores/<arm> and metrics/<arm>-scores.json."""
    base = find_base(settings.base)
    processor = base.processor()
    model, parents = load_arm(arm, base=base)
    predictions = []
    for set_name, samples in read_table(paths.SAMPLES).items():
        answers = answer_questions(
            model,
            processor=processor,
            questions=[_question(sample, settings.data) for sample in samples],
            batch_size=settings.evaluation.batch_size,
            max_new_tokens=settings.evaluation.max_new_tokens,
            label=f"{arm}, {set_name}",
        )
        predictions += make_predictions(samples, answers=answers, set_name=set_name)
    return write_scores(
        predictions,
        arm=arm,
        samples=paths.SAMPLES,
        evaluation=settings.evaluation,
        parents={"samples": digest_folder(paths.SAMPLES), **parents},
        base=base.identity,
        destination=paths.SCORES / arm,
        metrics=paths.METRICS / f"{arm}-scores.json",
    )


def _question(sample: Sample, data: DataSettings) -> Question:
    return Question(turns=tuple(sample.question), pictures=tuple(data.pictures / name for name in sample.pictures))
