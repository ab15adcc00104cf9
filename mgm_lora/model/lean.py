"""How lean a training step is: which parts are computed again in the backward pass instead of kept, whether their inputs wait in the
machine's memory, and how many logits exist at once.

None of it changes what is computed. It doesn't know which choice fits a card: the plan does.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from mgm_lora.arm_settings import CheckpointedPart

DEFAULT_LOSS_CHUNK = 256
_making_host_copy: ContextVar[bool] = ContextVar("making_host_copy", default=False)


@dataclass(frozen=True)
class LeanStep:
    """What is saved on in a step."""

    checkpointing: frozenset[CheckpointedPart] = frozenset()
    """Parts that are computed again."""
    offload: bool = False
    """Their inputs wait in the machine's memory."""
    loss_chunk: int = DEFAULT_LOSS_CHUNK
    """Labelled positions whose logits exist at once."""

    def run(self, part: CheckpointedPart, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)`, its activations kept or not as `part` says."""
        if part in self.checkpointing and torch.is_grad_enabled():
            return checkpointed(function, *inputs, offload=self.offload)
        return function(*inputs)


def make_lean_(model: Any, *, checkpointing: Collection[CheckpointedPart], offload: bool, loss_chunk: int) -> None:
    """In place: how an MGM's training steps are run from now on."""
    model.lean = LeanStep(checkpointing=frozenset(checkpointing), offload=offload, loss_chunk=loss_chunk)
    set_layer_checkpointing_(model.language_model, enabled="language_model" in checkpointing, offload=offload)
    set_layer_checkpointing_(model.vision_tower, enabled="vision_tower" in checkpointing, offload=offload)


def set_layer_checkpointing_(module: nn.Module, *, enabled: bool, offload: bool) -> None:
    """In place: every transformer layer of `module` is computed again in the backward pass, or is not."""
    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = enabled
            layer._gradient_checkpointing_func = partial(checkpointed, offload=offload)  # type: ignore[assignment]


def checkpointed(function: Callable[..., Any], *inputs: Any, offload: bool = False) -> Any:
    """`function(*inputs)`, of which only the inputs are kept for the backward pass, in the machine's memory with `offload`."""
    with saved_tensors_hooks(_to_host, _from_host) if offload else nullcontext():
        return checkpoint(function, *inputs, use_reentrant=False)


def is_making_host_copy() -> bool:
    """Whether the tensor that is being made lies in the machine's memory and not on the card: for those who count."""
    return _making_host_copy.get()


def sum_in_chunks(function: Callable[..., Tensor], *inputs: Tensor, chunk: int) -> Tensor:
    """The sum of a scalar function over slices of its inputs' first dimension, one slice's activations alive at a time."""
    total = None
    slices: Sequence[tuple[Tensor, ...]] = list(zip(*(i.split(chunk) for i in inputs), strict=True))
    for part in slices:
        value = checkpointed(function, *part) if torch.is_grad_enabled() else function(*part)
        total = value if total is None else total + value
    assert total is not None
    return total


@contextmanager
def _host_copies() -> Iterator[None]:
    token = _making_host_copy.set(True)
    try:
        yield
    finally:
        _making_host_copy.reset(token)


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    # A copy also where the device is the CPU: what is counted there is then what a card holds.
    with _host_copies():
        copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        copy.copy_(tensor)
    return tensor.device, copy


def _from_host(packed: tuple[torch.device, Tensor]) -> Tensor:
    device, copy = packed
    return copy.to(device, copy=True, non_blocking=True)
