"""Folds a trained adapter into its base, and proves on a fixed probe that the merged weights answer as the adapter does.

What is compared is the merged checkpoint as read back from disk. Three models one after another, never two in memory
beside each other's copies. An adapter that was trained over a 4-bit base is folded into the values that the 4-bit weights stand for, and compared
with that base. It doesn't know how the adapter was trained otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from mgm_lora.artifacts import Manifest, digest_folder, new_artifact, write_manifest
from mgm_lora.errors import MergeProofError
from mgm_lora.lora.adapter import adapter_quantization, load_adapter, merge_adapter_
from mgm_lora.merging.probe import Probe, ProbeAnswers, answer_probe
from mgm_lora.model.base import Base
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.settings import MergingSettings

KIND = "MergedModel"


@dataclass(frozen=True)
class MergeProof:
    """Merged against adapted (must be the same) and against the base (must not be)."""

    passed: bool
    num_probe_samples: int
    num_positions: int
    """Answer positions at which logits were compared."""
    max_logit_difference: float
    """Merged and adapted: largest absolute difference, over the largest absolute logit of the adapted model."""
    bound: float
    base_logit_difference: float
    """Merged and base, likewise."""
    base_bound: float
    top1_agreement: float
    """Share of positions at which merged and adapted have the same first choice."""
    same_answers: int
    """Probe samples that merged and adapted answer alike, greedily."""
    answers_changed_from_base: int


def merge_with_proof(
    adapter: Path,
    *,
    base: Base,
    probes: Sequence[Probe],
    merging: MergingSettings,
    max_new_tokens: int,
    destination: Path,
    settings: Mapping[str, BaseModel],
    parents: Mapping[str, str],
) -> MergeProof:
    """Writes a MergedModel to `destination`, with the proof in its manifest.

    Raises:
        MergeProofError: merged differs from adapted beyond the bound, or does not differ from the base; nothing is written.
        BaseChangedError: the adapter is of another base.
    """
    processor = base.processor()

    def ask(asked: Any, label: str) -> ProbeAnswers:
        return answer_probe(asked, probes=probes, processor=processor, max_new_tokens=max_new_tokens, label=label)

    model = base.load(quantization=adapter_quantization(adapter))
    of_base = ask(model, "base on the probe")
    adapted = load_adapter(model, folder=adapter, base_digest=base.digest)
    of_adapted = ask(adapted, "adapter on the probe")
    with new_artifact(destination) as folder:
        save_model(merge_adapter_(adapted).to(base.dtype), folder=folder)
        processor.save_pretrained(folder)
        of_merged = ask(load_model(folder, dtype=base.dtype).to(next(model.parameters()).device), "merged on the probe")
        proof = prove(of_base, adapted=of_adapted, merged=of_merged, merging=merging)
        _require(proof)
        manifest = Manifest.make(
            KIND,
            settings=settings,
            parents={**parents, "adapter": digest_folder(adapter)},
            base=base.identity,
            details={"proof": asdict(proof)},
        )
        write_manifest(folder, manifest)
    return proof


def prove(base: ProbeAnswers, *, adapted: ProbeAnswers, merged: ProbeAnswers, merging: MergingSettings) -> MergeProof:
    """The figures, and whether they hold."""
    difference = _relative_difference(merged.logits, adapted.logits)
    base_difference = _relative_difference(merged.logits, base.logits)
    same_answers = sum(a == b for a, b in zip(merged.answers, adapted.answers, strict=True))
    top1 = (merged.logits.argmax(-1) == adapted.logits.argmax(-1)).double().mean()
    return MergeProof(
        passed=difference <= merging.max_logit_difference and base_difference >= merging.min_base_difference,
        num_probe_samples=len(adapted.answers),
        num_positions=len(adapted.logits),
        max_logit_difference=difference,
        bound=merging.max_logit_difference,
        base_logit_difference=base_difference,
        base_bound=merging.min_base_difference,
        top1_agreement=float(top1),
        same_answers=same_answers,
        answers_changed_from_base=sum(a != b for a, b in zip(merged.answers, base.answers, strict=True)),
    )


def _require(proof: MergeProof) -> None:
    # not `>`: a difference that is no number must not pass
    if not proof.max_logit_difference <= proof.bound:
        raise MergeProofError(
            f"merged and adapted logits differ by {proof.max_logit_difference:.2e} of the largest logit, allowed are"
            f" {proof.bound:.2e} (merging.max_logit_difference); {proof.same_answers} of {proof.num_probe_samples} answers are the same."
            " Merge in float32 (base.dtype), or raise the bound if that loss is acceptable"
        )
    if not proof.base_logit_difference >= proof.base_bound:
        raise MergeProofError(
            f"merged and base logits differ by {proof.base_logit_difference:.2e} only, asked for at least {proof.base_bound:.2e}"
            " (merging.min_base_difference): the adapter changed nothing. Look at the training's loss and learning rate"
        )


def _relative_difference(logits: Tensor, reference: Tensor) -> float:
    return float((logits - reference).abs().max() / reference.abs().max())
