"""What comes out of operations over fakes is laid out and shared as what comes out of the real ones, found anew or remembered."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mgm_lora.memory.fakes import FakeFloats
from mgm_lora.memory.inference import Fake


def _numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape).to(dtype)


CALLS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "sum of two": (lambda a, b: a + b, (_numbers(2, 3), _numbers(3))),
    "wider precision": (lambda a, b: a + b, (_numbers(2, 3), _numbers(2, 3, dtype=torch.bfloat16))),
    "whole numbers beside": (lambda a, b: F.embedding(b, a), (_numbers(5, 4), torch.tensor([[1, 2, 4]]))),
    "product": (lambda a, b: a @ b, (_numbers(2, 4, 3), _numbers(3, 5))),
    "transposed view": (lambda a: a.transpose(0, 2), (_numbers(2, 3, 4),)),
    "slice": (lambda a: a[:, 1:3], (_numbers(2, 4),)),
    "slice of a slice": (lambda a: a[1:][:, 2:][..., 0], (_numbers(3, 4),)),
    "halves": (lambda a: a.chunk(2), (_numbers(4, 3),)),
    "expanded": (lambda a: a.expand(5, -1, 3), (_numbers(2, 1),)),
    "strided at a place": (lambda a: a[2:].as_strided((2, 2), (1, 3), 1), (_numbers(12),)),
    "other precision at a place": (lambda a: a[2:].view(torch.int16), (_numbers(8),)),
    "copy of a view": (lambda a: a.T.contiguous(), (_numbers(2, 3),)),
    "largest, and where": (lambda a: a.max(dim=1), (_numbers(2, 3),)),
    "layer norm": (lambda a: F.layer_norm(a, (3,)), (_numbers(2, 3),)),
    "convolution": (lambda a, b: F.conv2d(a, b, stride=2), (_numbers(1, 3, 8, 8), _numbers(4, 3, 2, 2))),
    "picked by a mask": (
        lambda a, b: a[b],
        (_numbers(2, 3), torch.tensor([[True, False, True], [False, False, True]])),
    ),
    "put by a mask": (lambda a, b: a.clone().masked_fill(b, 0.0), (_numbers(2, 2), torch.eye(2).bool())),
    "in place": (lambda a: a.mul_(2).add_(1), (_numbers(2, 3),)),
    "lists in place": (lambda a, b: torch._foreach_add_([a, b], [b, a]), (_numbers(2), _numbers(2))),
    "lists": (lambda a, b: torch._foreach_norm([a, b]), (_numbers(2), _numbers(3, 2))),
}


@pytest.mark.parametrize("name", CALLS)
def test_layout_and_sharing_are_those_of_real_tensors(name: str) -> None:
    call, real = CALLS[name]
    mode = FakeFloats()
    for _ in range(2):  # found out, and remembered
        arguments = [Fake.like(tensor) if tensor.is_floating_point() else tensor for tensor in real]
        with mode:
            found = call(*arguments)
        copies = [tensor.clone() for tensor in real]
        assert _layouts(found, arguments) == _layouts(call(*copies), copies)


def test_like_numbers_of_other_kinds_are_told_apart() -> None:
    values = torch.ones(3, dtype=torch.bfloat16)
    with FakeFloats():
        whole = torch.full((2,), 1)
        broken, true = torch.full((2,), 1.0), torch.full((2,), True)
        scaled = [torch.div(Fake.like(values), by) for by in (1, 1.0)]
        steps = [torch.arange(0, 3, dtype=dtype) * Fake.like(values)[0] for dtype in (torch.float32, torch.int64)]
    assert (whole.dtype, broken.dtype, true.dtype) == (torch.int64, torch.float32, torch.bool)
    assert [type(tensor) for tensor in (whole, broken, true)] == [Tensor, Fake, Tensor]
    assert [tensor.dtype for tensor in scaled] == [torch.bfloat16] * 2
    assert [tensor.dtype for tensor in steps] == [torch.float32, torch.bfloat16]


def test_whole_numbers_and_single_ones_are_really_computed() -> None:
    with FakeFloats():
        count = torch.tensor(0.0)
        torch._foreach_add_([count], 1)
        assert torch.arange(4).sum().item() == 6
        assert count.item() == 1.0
        assert (torch.tensor([3, 4]) > 3).tolist() == [False, True]


def test_gradients_are_shaped_as_their_parameters() -> None:
    weight = torch.nn.Parameter(Fake.like(torch.empty(3, 4)))
    with FakeFloats():
        F.gelu(Fake.like(torch.empty(2, 4)) @ weight.T).sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape
        optimizer = torch.optim.AdamW([weight])
        optimizer.step()
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape
    assert optimizer.state[weight]["step"].item() == 1


def test_change_of_layout_in_place_is_refused() -> None:
    with FakeFloats(), pytest.raises(NotImplementedError, match="layout in place"):
        Fake.like(torch.empty(2, 3)).t_()


def test_fakes_are_not_computed_with_outside_of_the_mode() -> None:
    with pytest.raises(NotImplementedError, match="outside of its mode"):
        Fake.like(torch.empty(2)) + 1


def _layouts(result: Any, arguments: list[Tensor]) -> Any:
    """Shape, strides, offset, precision and storage of a result, and which argument it is or shares a storage with."""
    if isinstance(result, list | tuple):
        return [_layouts(item, arguments) for item in result]
    if not isinstance(result, Tensor):
        return result
    storage = result.untyped_storage()
    is_, shares = (
        [argument is result for argument in arguments],
        [argument.untyped_storage()._cdata == storage._cdata for argument in arguments],
    )
    return result.shape, result.stride(), result.storage_offset(), result.dtype, storage.nbytes(), is_, shares
