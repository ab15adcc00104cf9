"""What must hold before an adapter is registered, asked of the manifests that the stages left.

Nothing is computed anew but digests: each stage has proven its own part, and here it is seen that the proofs are there, that they hold, and that
they are of this adapter and of the samples that it was trained on. It knows no store.
"""

from collections.abc import Mapping
from typing import Any

from mgm_lora.artifacts import CONTRACT_CHECKS, digest_folder
from mgm_lora.data.checks import LEAKED_PICTURE
from mgm_lora.errors import ArtifactError, BaseChangedError, ContractError, MergeProofError, ValidationFailedError
from mgm_lora.registry.records import PipelineRecord


def check_registrable(record: PipelineRecord) -> None:
    """Raises where something doesn't hold.

    Raises:
        ArtifactError: the base isn't named by a digest, or a part is of another adapter or of other samples.
        BaseChangedError: a part is of another base.
        ContractError: the training was not checked to be what was asked.
        ValidationFailedError: the samples were not checked for leakage, or leak.
        MergeProofError: the merged model was not proven to be the adapter.
    """
    check_contract(record)
    check_no_leakage(record)
    check_base(record)
    check_belongs_together(record)
    check_proof(record)


def check_base(record: PipelineRecord) -> None:
    """The base is known by its digest, and the same in the training, the merge and the scores."""
    digest = record.adapter_manifest.base.get("digest")
    if not digest:
        raise ArtifactError(f"the manifest of '{record.adapter}' names no base digest: run `dvc repro --force train`")
    subject = record.arms[record.sources.subject]
    for path, manifest in ((record.sources.merged, record.merged_manifest), (subject.scores, subject.scores_manifest)):
        if manifest.base.get("digest") != digest:
            raise BaseChangedError(
                f"'{record.adapter}' was trained on the base {str(digest)[:12]}, but '{path}' is of the base"
                f" {str(manifest.base.get('digest'))[:12]}, so it says nothing of this adapter: run `dvc repro`"
            )


def check_belongs_together(record: PipelineRecord) -> None:
    """The scores are of this adapter, and were taken on the samples that are there."""
    subject = record.arms[record.sources.subject]
    if subject.scores_manifest.parents.get("adapter") != digest_folder(record.adapter):
        raise ArtifactError(
            f"'{subject.scores}' holds the scores of another adapter than '{record.adapter}': run `dvc repro evaluate`"
        )
    if subject.scores_manifest.parents.get("samples") != record.samples_digest:
        raise ArtifactError(
            f"'{subject.scores}' holds the scores on other samples than those of '{record.sources.samples}': run `dvc repro evaluate`"
        )


def check_contract(record: PipelineRecord) -> None:
    """What was asked to be trained is what was trained."""
    contract = record.adapter_manifest.details.get("contract", {})
    missing = [check for check in CONTRACT_CHECKS if check not in contract.get("held", [])]
    if missing:
        raise ContractError(
            f"the manifest of '{record.adapter}' does not say that what was asked is what trained (missing: {', '.join(missing)}),"
            " so it is not registered: run `dvc repro train`"
        )


def check_no_leakage(record: PipelineRecord) -> None:
    """Of exactly the samples that were trained on it was asked whether a picture is scored too, and none is."""
    if record.adapter_manifest.parents.get("samples") != record.samples_digest:
        raise ArtifactError(
            f"'{record.adapter}' was trained on other samples than those of '{record.sources.samples}', so what is known of their leakage"
            " says nothing of it: run `dvc repro`"
        )
    leaked = _rejects(record.samples_manifest.details, file="train").get(LEAKED_PICTURE)
    if leaked != 0:
        found = "were not checked for leakage" if leaked is None else f"hold {leaked} that are scored too"
        raise ValidationFailedError(
            f"the samples of '{record.sources.samples}', which '{record.adapter}' was trained on, {found}, so it is not registered:"
            " run `dvc repro --force validate` and look at reports/validation/index.html"
        )


def check_proof(record: PipelineRecord) -> None:
    """The merged model answers as the adapter does, within the bound."""
    if record.merged_manifest.parents.get("adapter") != digest_folder(record.adapter):
        raise ArtifactError(
            f"'{record.sources.merged}' was merged from another adapter than '{record.adapter}', so its proof says"
            " nothing of this one: run `dvc repro merge`"
        )
    proof = record.proof
    difference, bound = proof.get("max_logit_difference"), proof.get("bound")
    holds = proof.get("passed") is True and difference is not None and bound is not None and difference <= bound
    if not holds:
        raise MergeProofError(
            f"the merge proof of '{record.sources.merged}' does not hold (difference {difference}, bound {bound}, passed"
            f" {proof.get('passed')}), so '{record.adapter}' is not registered: run `dvc repro merge` and look at its message"
        )


def _rejects(details: Mapping[str, Any], *, file: str) -> Mapping[str, Any]:
    found = details.get("files", {}).get(file, {}).get("rejects", {})
    return found if isinstance(found, Mapping) else {}
