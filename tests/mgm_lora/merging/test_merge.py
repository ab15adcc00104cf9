"""The merge's proof: it holds for a real merge, and fails for one that is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mgm_lora.artifacts import Manifest, read_manifest, write_manifest
from mgm_lora.errors import BaseChangedError, MergeProofError
from mgm_lora.lora.adapter import KIND, save_adapter
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.merging.merge import MergeProof, merge_with_proof
from mgm_lora.merging.probe import Probe
from mgm_lora.model.base import Base, Quantization, find_base
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.quantization import is_quantized
from mgm_lora.settings import BaseSettings, LoraSettings, MergingSettings, PointSettings

MERGING = MergingSettings(num_probe_samples=3, max_logit_difference=1e-4, min_base_difference=1e-3)


@pytest.fixture
def base(tiny_base: Path) -> Base:
    return find_base(BaseSettings(model=str(tiny_base), dtype="float32"))


@pytest.fixture
def probes(make_picture: Callable[..., Path]) -> list[Probe]:
    return [
        Probe(turns=(("human", "<image>\nwhat is it?"), ("gpt", "a red one")), pictures=(make_picture(number),))
        for number in range(3)
    ]


@pytest.fixture
def make_adapter(base: Base, tmp_path: Path) -> Callable[..., Path]:
    """An adapter whose B matrices have this scale."""

    def make(scale: float, *, quantization: Quantization = "none") -> Path:
        point = PointSettings(mode="lora", rank=4, alpha=8)
        lora = LoraSettings(
            learning_rate=1e-3,
            language_attention=point,
            language_mlp=point,
            vision_attention=point,
            projector=PointSettings(mode="full"),
            mining=point,
        )
        trainable = inject_adapter_(base.load(quantization=quantization), lora=lora, seed=1)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in trainable.model.named_parameters():
                if "lora_B" in name or (parameter.requires_grad and ".lora_" not in name):
                    parameter += scale * torch.randn_like(parameter)
        folder = tmp_path / "adapter"
        folder.mkdir()
        save_adapter(trainable.model, folder=folder)
        details = {"quantization": quantization}
        write_manifest(folder, Manifest.make(KIND, settings={}, parents={}, base=base.identity, details=details))
        return folder

    return make


def merge(
    adapter: Path, *, base: Base, probes: list[Probe], destination: Path, merging: MergingSettings = MERGING
) -> MergeProof:
    return merge_with_proof(
        adapter,
        base=base,
        probes=probes,
        merging=merging,
        max_new_tokens=4,
        destination=destination,
        settings={"merging": merging},
        parents={},
    )


def test_merged_is_proven_equal_to_the_adapter_and_unlike_the_base(
    make_adapter: Callable[[float], Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    proof = merge(make_adapter(0.2), base=base, probes=probes, destination=tmp_path / "merged")
    manifest = read_manifest(tmp_path / "merged", kind="MergedModel")
    assert proof.passed
    assert manifest.details["proof"]["passed"] is True
    assert 0 < proof.max_logit_difference <= 1e-4
    assert proof.base_logit_difference >= 1e-3
    assert proof.same_answers == proof.num_probe_samples == 3
    assert proof.num_positions == 3 * len("a red one" + "EN!")  # the letters, end of turn, newline, end of sequence
    load_model(tmp_path / "merged", dtype=torch.float32)


def test_adapter_trained_over_4_bit_is_proven_against_itself_not_against_the_plain_base(
    make_adapter: Callable[..., Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    proof = merge(make_adapter(0.2, quantization="nf4"), base=base, probes=probes, destination=tmp_path / "merged")
    merged = load_model(tmp_path / "merged", dtype=torch.float32)
    assert proof.passed
    assert 0 < proof.max_logit_difference <= 1e-4
    assert proof.same_answers == 3
    assert not is_quantized(merged)


def test_rounding_alone_is_no_learning(
    make_adapter: Callable[..., Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    adapter = make_adapter(0.0, quantization="nf4")
    with pytest.raises(MergeProofError, match="the adapter changed nothing"):
        merge(adapter, base=base, probes=probes, destination=tmp_path / "merged")


def test_merge_beyond_the_bound_fails_and_leaves_nothing(
    make_adapter: Callable[[float], Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    strict = MERGING.model_copy(update={"max_logit_difference": 1e-12})
    with pytest.raises(MergeProofError, match="merged and adapted logits differ by"):
        merge(make_adapter(0.2), base=base, probes=probes, destination=tmp_path / "out" / "merged", merging=strict)
    assert list((tmp_path / "out").iterdir()) == []


def test_adapter_that_did_nothing_fails(
    make_adapter: Callable[[float], Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    with pytest.raises(MergeProofError, match="the adapter changed nothing"):
        merge(make_adapter(0.0), base=base, probes=probes, destination=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_adapter_of_another_base_is_refused(
    make_adapter: Callable[[float], Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    other = Base(folder=base.folder, digest="0" * 64, dtype=base.dtype, identity=base.identity)
    with pytest.raises(BaseChangedError):
        merge(make_adapter(0.2), base=other, probes=probes, destination=tmp_path / "merged")
