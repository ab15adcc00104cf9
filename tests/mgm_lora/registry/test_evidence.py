"""What a version holds beside its adapter, and that it is read back as it was written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mgm_lora.artifacts import digest_folder, write_json
from mgm_lora.errors import ArtifactError
from mgm_lora.registry.evidence import Evidence
from mgm_lora.registry.lookup import VersionFiles, fetch_version, find_version
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.store import open_store
from mgm_lora.registry.versions import RegisteredVersion
from mgm_lora.settings import RegistrySettings

from ..pipelines import NUM_TRAIN


def fetched(registry: RegistrySettings) -> VersionFiles:
    store = open_store(registry)
    return fetch_version(find_version("models:/demo/1", store=store), store=store)


def test_version_holds_all_that_speaks_for_it(
    registered: RegisteredVersion, registry: RegistrySettings, sources: RegistrationSources
) -> None:
    folder = fetched(registry).evidence.folder
    for path, kept in {
        sources.report: "report.html",
        sources.data_docs / "index.html": "data_docs/index.html",
        sources.lock: "dvc.lock",
        sources.params: "params.yaml",
        sources.pipeline: "dvc.yaml",
    }.items():
        assert (folder / kept).read_bytes() == path.read_bytes(), kept
    assert digest_folder(folder / "scores") == digest_folder(sources.scores / "lora-5")


def test_evidence_tells_settings_figures_samples_and_source(
    registered: RegisteredVersion, registry: RegistrySettings
) -> None:
    evidence = fetched(registry).evidence
    assert evidence.subject == "lora-5"
    assert evidence.params["registry"]["model_name"] == "demo"
    assert evidence.comparison["arms"]["lora"]["score"] == 0.5
    assert evidence.samples.details["files"]["train"]["rejects"] == {"leaked_picture": 0}
    assert evidence.source.commit is None
    assert len(evidence.train_pictures()) == NUM_TRAIN


def test_same_adapter_in_another_comparison_has_its_evidence(
    register: Callable[[], RegisteredVersion], registry: RegistrySettings, sources: RegistrationSources
) -> None:
    register()
    sources.report.write_text("<h1>another report</h1>")
    write_json(sources.metrics / "comparison.json", {"arms": {"lora": {"score": 0.75}}})
    assert register().version == 1
    evidence = fetched(registry).evidence
    assert (evidence.folder / "report.html").read_text() == "<h1>another report</h1>"
    assert evidence.comparison["arms"]["lora"]["score"] == 0.75


def test_version_without_evidence_says_what_to_do(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path / "evidence")
    for read in (lambda: evidence.params, lambda: evidence.source, evidence.train_pictures):
        with pytest.raises(ArtifactError, match="missing in the version, or not whole"):
            read()
