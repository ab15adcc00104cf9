"""The merge's proof: it holds for a real merge, and fails for one that is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.artifacts import Manifest, read_manifest, write_manifest
from mgm_lora.errors import BaseChangedError, MergeProofError
from mgm_lora.lora.adapter import KIND, save_adapter
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.merging.merge import MergeProof, merge_with_proof
from mgm_lora.merging.probe import Probe
from mgm_lora.model.base import Base, Quantization, find_base
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.quantization import is_quantized
from mgm_lora.settings import BaseSettings, MergingSettings, PrecisionBounds

BOUNDS = PrecisionBounds(float32=1e-4, bfloat16=5e-2, float16=1e-2)
MERGING = MergingSettings(num_probe_samples=3, max_logit_difference=BOUNDS, min_base_difference=1e-3)


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
    assert proof.max_logit_difference is not None
    assert 0 < proof.max_logit_difference <= 1e-4
    assert proof.base_logit_difference >= 1e-3
    assert proof.same_answers == proof.num_probe_samples == 3
    assert proof.num_positions == 3 * len("a red one" + "EN!")  # the letters, end of turn, newline, end of sequence
    assert {name: figures.passed for name, figures in proof.others.items()} == {"bfloat16": True, "float16": True}
    assert proof.max_logit_difference < proof.others["float16"].max_logit_difference
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    load_model(tmp_path / "merged", dtype=torch.float32)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_reduced_base_is_merged_within_its_bound_and_rounded_once(
    precision: Literal["bfloat16", "float16"],
    quantization: Quantization,
    tiny_base: Path,
    make_adapter: Callable[..., Path],
    probes: list[Probe],
    tmp_path: Path,
) -> None:
    base = find_base(BaseSettings(model=str(tiny_base), dtype=precision))
    adapter = make_adapter(0.2, quantization=quantization)
    proof = merge(adapter, base=base, probes=probes, destination=tmp_path / "merged")
    assert proof.passed
    assert proof.precision == precision
    assert proof.bound == getattr(BOUNDS, precision)
    others = {"float32", "float16", "bfloat16"} - {precision}
    assert proof.others.keys() == others | (
        {f"{precision} into the original weights"} if quantization == "nf4" else set()
    )
    assert proof.others["float32"].bound == proof.bound  # the adapter's own logits are of the base's precision


def test_adapter_trained_over_4_bit_is_proven_against_itself_not_against_the_plain_base(
    make_adapter: Callable[..., Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    proof = merge(make_adapter(0.2, quantization="nf4"), base=base, probes=probes, destination=tmp_path / "merged")
    merged = load_model(tmp_path / "merged", dtype=torch.float32)
    assert proof.passed
    assert proof.max_logit_difference is not None
    assert 0 < proof.max_logit_difference <= 1e-4
    assert proof.same_answers == 3
    assert not is_quantized(merged)
    original = proof.others["float32 into the original weights"]
    assert original.max_logit_difference > proof.max_logit_difference  # it had learned to make up for the rounding


def test_rounding_alone_is_no_learning(
    make_adapter: Callable[..., Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    adapter = make_adapter(0.0, quantization="nf4")
    with pytest.raises(MergeProofError, match="the adapter changed nothing"):
        merge(adapter, base=base, probes=probes, destination=tmp_path / "merged")


def test_merge_beyond_the_bound_fails_and_leaves_nothing(
    make_adapter: Callable[[float], Path], base: Base, probes: list[Probe], tmp_path: Path
) -> None:
    strict = MergingSettings.model_validate(
        {**MERGING.model_dump(), "max_logit_difference": {**BOUNDS.model_dump(), "float32": 1e-12}}
    )
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
