"""Folds a trained adapter into its base, and proves on a fixed probe that the merged weights answer as the adapter does.

The merged checkpoint in the base's precision is what is kept, and what must hold. It is also merged in the other precisions, and an adapter of a
4-bit base into the weights as they were before, so that people see what each would cost; those are told, and not kept. What is compared is always a
checkpoint as read back from disk, with the adapter as it was trained. One model in memory at a time. It doesn't know how the adapter was trained
otherwise.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from mgm_lora.artifacts import Manifest, digest_folder, new_artifact, write_manifest
from mgm_lora.errors import MergeProofError
from mgm_lora.lora.adapter import adapter_quantization, load_adapter, merge_adapter_
from mgm_lora.merging.probe import Probe, ProbeAnswers, answer_probe
from mgm_lora.model.base import DTYPES, Base
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.settings import MergingSettings

logger = logging.getLogger(__name__)
KIND = "MergedModel"
_COARSENESS = (torch.float32, torch.float16, torch.bfloat16)
Ask = Callable[[Any, str], ProbeAnswers]


@dataclass(frozen=True)
class Way:
    """How an adapter can be merged."""

    dtype: torch.dtype
    into_original: bool = False
    """Into the weights before they were rounded to 4 bit, instead of the values that the 4-bit weights stand for."""

    @property
    def name(self) -> str:
        """`bfloat16`, or `bfloat16 into the original weights`."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} into the original weights" if self.into_original else name


@dataclass(frozen=True)
class MergeFigures:
    """One way of merging against the adapter as it was trained."""

    passed: bool
    max_logit_difference: float | None
    """Largest absolute difference, over the largest absolute logit of the adapted model; none: the merged logits are no numbers."""
    bound: float
    top1_agreement: float
    """Share of positions at which merged and adapted have the same first choice."""
    same_answers: int
    """Probe samples that merged and adapted answer alike, greedily."""


@dataclass(frozen=True)
class MergeProof:
    """Merged against adapted (must be the same) and against the base (must not be)."""

    passed: bool
    precision: str
    """Of the weights that are kept."""
    num_probe_samples: int
    num_positions: int
    """Answer positions at which logits were compared."""
    max_logit_difference: float | None
    bound: float
    base_logit_difference: float | None
    """Merged and base, likewise."""
    base_bound: float
    top1_agreement: float
    same_answers: int
    answers_changed_from_base: int
    others: Mapping[str, MergeFigures]
    """What the other ways of merging would give; they need not pass."""


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
    """Writes a MergedModel in the base's precision to `destination`, with the proof in its manifest.

    Raises:
        MergeProofError: merged differs from adapted beyond the bound, or does not differ from the base; nothing is written.
        BaseChangedError: the adapter is of another base.
    """
    processor = base.processor()

    def ask(asked: Any, label: str) -> ProbeAnswers:
        return answer_probe(asked, probes=probes, processor=processor, max_new_tokens=max_new_tokens, label=label)

    of_base, of_adapted = _ask_unmerged(adapter, base=base, ask=ask)
    kept = Way(base.dtype)
    with new_artifact(destination) as folder:
        save_model(_merge(adapter, base=base, way=kept), folder=folder)
        processor.save_pretrained(folder)
        of_merged = _ask_written(folder, base=base, way=kept, ask=ask)
        others = {}
        if _figures(of_merged, adapted=of_adapted, bound=_bound(kept, base=base, merging=merging)).passed:
            others = dict(
                _try_others(adapter, base=base, of_adapted=of_adapted, merging=merging, ask=ask, beside=folder)
            )
        proof = prove(of_base, adapted=of_adapted, merged=of_merged, merging=merging, base=base, others=others)
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


def prove(
    of_base: ProbeAnswers,
    *,
    adapted: ProbeAnswers,
    merged: ProbeAnswers,
    merging: MergingSettings,
    base: Base,
    others: Mapping[str, MergeFigures],
) -> MergeProof:
    """The figures, and whether they hold."""
    kept = Way(base.dtype)
    figures = _figures(merged, adapted=adapted, bound=_bound(kept, base=base, merging=merging))
    base_difference = _relative_difference(merged.logits, of_base.logits)
    return MergeProof(
        passed=figures.passed and base_difference is not None and base_difference >= merging.min_base_difference,
        precision=kept.name,
        num_probe_samples=len(adapted.answers),
        num_positions=len(adapted.logits),
        max_logit_difference=figures.max_logit_difference,
        bound=figures.bound,
        base_logit_difference=base_difference,
        base_bound=merging.min_base_difference,
        top1_agreement=figures.top1_agreement,
        same_answers=figures.same_answers,
        answers_changed_from_base=sum(a != b for a, b in zip(merged.answers, of_base.answers, strict=True)),
        others=others,
    )


def _ask_unmerged(adapter: Path, *, base: Base, ask: Ask) -> tuple[ProbeAnswers, ProbeAnswers]:
    model = base.load(quantization=adapter_quantization(adapter))
    of_base = ask(model, "base on the probe")
    return of_base, ask(load_adapter(model, folder=adapter, base_digest=base.digest), "adapter on the probe")


def _merge(adapter: Path, *, base: Base, way: Way) -> MGMForConditionalGeneration:
    quantization = "none" if way.into_original else adapter_quantization(adapter)
    model = base.load(quantization=quantization)
    if quantization == "nf4":
        from mgm_lora.model.quantization import dequantize_language_model_  # bitsandbytes takes a second to import

        dequantize_language_model_(model)
    adapted = load_adapter(model, folder=adapter, base_digest=base.digest, over="these weights")
    return merge_adapter_(adapted, dtype=way.dtype)


def _ask_written(folder: Path, *, base: Base, way: Way, ask: Ask) -> ProbeAnswers:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ask(load_model(folder, dtype=way.dtype).to(device), f"merged ({way.name}) on the probe")


def _try_others(
    adapter: Path, *, base: Base, of_adapted: ProbeAnswers, merging: MergingSettings, ask: Ask, beside: Path
) -> Iterator[tuple[str, MergeFigures]]:
    for way in _other_ways(base, quantized=adapter_quantization(adapter) != "none"):
        with tempfile.TemporaryDirectory(prefix=".merged-", suffix=".part", dir=beside.parent) as scratch:
            save_model(_merge(adapter, base=base, way=way), folder=Path(scratch))
            of_merged = _ask_written(Path(scratch), base=base, way=way, ask=ask)
        figures = _figures(of_merged, adapted=of_adapted, bound=_bound(way, base=base, merging=merging))
        if not figures.passed:
            logger.warning("merged in %s it would not answer as the adapter does: %s", way.name, figures)
        yield way.name, figures


def _other_ways(base: Base, *, quantized: bool) -> list[Way]:
    ways = [Way(dtype) for dtype in DTYPES.values() if dtype != base.dtype]
    return [*ways, Way(base.dtype, into_original=True)] if quantized else ways


def _bound(way: Way, *, base: Base, merging: MergingSettings) -> float:
    coarser = max(way.dtype, base.dtype, key=_COARSENESS.index)
    bound: float = getattr(merging.max_logit_difference, Way(coarser).name)
    return bound


def _figures(merged: ProbeAnswers, *, adapted: ProbeAnswers, bound: float) -> MergeFigures:
    difference = _relative_difference(merged.logits, adapted.logits)
    return MergeFigures(
        passed=difference is not None and difference <= bound,
        max_logit_difference=difference,
        bound=bound,
        top1_agreement=float((merged.logits.argmax(-1) == adapted.logits.argmax(-1)).double().mean()),
        same_answers=sum(a == b for a, b in zip(merged.answers, adapted.answers, strict=True)),
    )


def _require(proof: MergeProof) -> None:
    difference, of_base = proof.max_logit_difference, proof.base_logit_difference
    if difference is None or difference > proof.bound:
        found = "are no numbers" if difference is None else f"differ by {difference:.2e} of the largest logit"
        raise MergeProofError(
            f"merged and adapted logits {found}, allowed are {proof.bound:.2e} (merging.max_logit_difference.{proof.precision});"
            f" {proof.same_answers} of {proof.num_probe_samples} answers are the same."
            " Merge in float32 (base.dtype), or raise the bound if that loss is acceptable"
        )
    if of_base is None or of_base < proof.base_bound:
        raise MergeProofError(
            f"merged and base logits differ by {of_base or 0:.2e} only, asked for at least {proof.base_bound:.2e}"
            " (merging.min_base_difference): the adapter changed nothing. Look at the training's loss and learning rate"
        )


def _relative_difference(logits: Tensor, reference: Tensor) -> float | None:
    difference = float((logits - reference).abs().max() / reference.abs().max())
    return difference if math.isfinite(difference) else None
