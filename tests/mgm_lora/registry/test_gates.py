"""What is not registered: each refusal, told before the store is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.artifacts import write_json
from mgm_lora.errors import ArtifactError, BaseChangedError, MgmLoraError, ValidationFailedError
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.versions import RegisteredVersion

from ..pipelines import write_arm_scores, write_merged

Register = Callable[[], RegisteredVersion]


def change(folder: Path, *, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    write_json(path, manifest)


def made_anew(project: Path) -> None:
    """What follows from samples or an adapter that were changed, as the stages would make it."""
    write_merged(project, passed=True)
    write_arm_scores(project, "lora-5")


def refused(register: Register, error: type[MgmLoraError], match: str) -> None:
    with pytest.raises(error, match=match):
        register()
    assert not Path("mlartifacts").exists()  # the store was not even opened


@pytest.mark.parametrize(
    "leaked, told",
    [(2, "hold 2 that are scored too"), (None, "were not checked for leakage")],
)
def test_samples_that_leak_or_were_not_asked_are_refused(
    leaked: int | None, told: str, register: Register, sources: RegistrationSources, project: Path
) -> None:
    rejects = {} if leaked is None else {"leaked_picture": leaked}
    change(sources.samples, change=lambda manifest: manifest["details"]["files"]["train"].update(rejects=rejects))
    trained_on(sources, samples=sources.samples)
    made_anew(project)
    refused(register, ValidationFailedError, told)


def test_leakage_of_other_samples_than_those_trained_on_says_nothing(
    register: Register, sources: RegistrationSources, project: Path
) -> None:
    shutil.copy(sources.samples / "heldout.parquet", sources.samples / "train.parquet")
    made_anew(project)
    refused(register, ArtifactError, "was trained on other samples than those of 'artifacts/samples'")


def test_base_without_digest_is_refused(register: Register, sources: RegistrationSources, project: Path) -> None:
    change(sources.trained / "lora-5", change=lambda manifest: manifest["base"].pop("digest"))
    refused(register, ArtifactError, "names no base digest")


@pytest.mark.parametrize("part", ["merged", "scores/lora-5"])
def test_part_that_is_of_another_base_is_refused(
    part: str, register: Register, sources: RegistrationSources, project: Path
) -> None:
    change(project / "artifacts" / part, change=lambda manifest: manifest["base"].update(digest="0" * 64))
    refused(register, BaseChangedError, f"'artifacts/{part}' is of the base 000000000000")


@pytest.mark.parametrize(
    "parent, told", [("adapter", "the scores of another adapter"), ("samples", "the scores on other samples")]
)
def test_scores_of_something_else_are_refused(
    parent: str, told: str, register: Register, sources: RegistrationSources
) -> None:
    change(sources.scores / "lora-5", change=lambda manifest: manifest["parents"].update({parent: "0" * 64}))
    refused(register, ArtifactError, told)


def trained_on(sources: RegistrationSources, *, samples: Path) -> None:
    from mgm_lora.artifacts import digest_folder

    digest = digest_folder(samples)
    change(sources.trained / "lora-5", change=lambda manifest: manifest["parents"].update(samples=digest))
