"""What is said of determinism is what is in force, and kernels that don't keep to it are named when they are used."""

import os
import warnings

import pytest
import torch

from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.training.determinism import deterministic, kernel_named_by

PLAIN = StepKnobs(micro_batch_size=1)


def test_settings_hold_during_the_block_and_are_as_before_afterwards() -> None:
    before = (torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark, dict(os.environ))
    with deterministic(7, knobs=PLAIN) as found:
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == found.details()["cublas_workspace"]
    assert (torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark, dict(os.environ)) == before
    assert found.details()["seed"] == 7
    assert found.details()["threads"] == torch.get_num_threads()
    assert found.details()["not_deterministic"] == []


def test_kernel_without_a_deterministic_way_is_named_once_and_other_warnings_go_on() -> None:
    with warnings.catch_warnings(record=True) as told, deterministic(7, knobs=PLAIN) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        warnings.warn("something else", stacklevel=1)
    assert found.details()["not_deterministic"] == ["put_"]
    assert [str(warning.message) for warning in told] == ["something else"]


def test_kernel_in_a_backward_pass_is_named() -> None:
    weights = torch.rand(4, requires_grad=True)
    with deterministic(7, knobs=PLAIN) as found:
        _Scatters.apply(weights).sum().backward()
    assert found.details()["not_deterministic"] == ["put_"]


@pytest.mark.parametrize(
    "warning, kernel",
    [
        ("kthvalue CUDA does not have a deterministic implementation, but you set 'torch...'", "kthvalue CUDA"),
        ("Memory Efficient attention defaults to a non-deterministic algorithm. To ...", "Memory Efficient attention"),
        (
            "... is not deterministic because it uses CuBLAS and you have CUDA >= 10.2",
            "cuBLAS without CUBLAS_WORKSPACE_CONFIG",
        ),
        ("`is_gradient_checkpointing` is deprecated", None),
    ],
)
def test_torchs_sentences_are_understood(warning: str, kernel: str | None) -> None:
    """The first three as they stand in torch's sources; the CUDA ones can't be met without a card."""
    assert kernel_named_by(warning) == kernel


@pytest.mark.parametrize(
    "knobs, words",
    [
        (PLAIN, []),
        (StepKnobs(micro_batch_size=1, quantization="nf4", optimizer="paged_adamw_8bit"), ["4-bit", "8-bit AdamW"]),
        (StepKnobs(micro_batch_size=1, optimizer="paged_adamw"), ["bitsandbytes' AdamW"]),
    ],
)
def test_what_bitsandbytes_brings_is_named_as_not_checked(knobs: StepKnobs, words: list[str]) -> None:
    with deterministic(7, knobs=knobs) as found:
        pass
    told = found.details()["not_checked"]
    assert len(told) == len(words)
    assert all(word in line for word, line in zip(words, told, strict=True))


class _Scatters(torch.autograd.Function):
    @staticmethod
    def forward(context: object, weights: torch.Tensor) -> torch.Tensor:
        return weights * 2

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.zeros(4).put_(torch.arange(4), gradient)
