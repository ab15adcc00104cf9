"""What was run is told as the manifests say it."""

import json
from collections.abc import Callable

from mgm_lora.artifacts import MANIFEST_NAME
from mgm_lora.evaluation.comparison import compare
from mgm_lora.evaluation.provenance import gather_provenance
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.settings import ComparisonSettings, EvaluationSettings

MakeRun = Callable[..., ComparisonSources]


def test_facts_are_shown_once_and_differences_with_their_artifact(
    make_run: MakeRun, evaluation: EvaluationSettings, comparison_settings: ComparisonSettings
) -> None:
    sources = make_run()
    path = sources.trained / "lora-17" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["settings"]["arm"]["learning_rate"] = 0.5
    path.write_text(json.dumps(manifest))
    provenance = gather_provenance(compare(sources, evaluation=evaluation, comparison=comparison_settings))
    settings = [(fact.name, fact.value, fact.where) for fact in provenance.settings]
    assert ("evaluation.score_types", "colour, shape", "") in settings
    assert ("arm.learning_rate", "0.5", "trained/lora-17") in settings
    assert ("arm.learning_rate", "0.001", "samples, merged, trained/full-17") in settings
    assert ("digest", "cd" * 32) in [(fact.name, fact.value) for fact in provenance.base]
    assert ("data", "ef" * 32, "merged") in [(fact.name, fact.value, fact.where) for fact in provenance.digests]
    assert ("seed", "17", "trained/lora-17") in [(fact.name, fact.value, fact.where) for fact in provenance.details]
    assert "torch" in [fact.name for fact in provenance.versions]
    assert [fact.name for fact in provenance.machine] == ["system", "python", "processor", "memory"]


def test_the_training_device_is_told_where_it_is_recorded(
    make_run: MakeRun, evaluation: EvaluationSettings, comparison_settings: ComparisonSettings
) -> None:
    sources = make_run()
    path = sources.metrics / "train" / "full-17.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "one small card"}))
    provenance = gather_provenance(compare(sources, evaluation=evaluation, comparison=comparison_settings))
    assert ("trained on", "one small card", "full") in [
        (fact.name, fact.value, fact.where) for fact in provenance.machine
    ]
