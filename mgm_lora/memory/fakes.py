"""Fake tensors for a whole training step: shapes, precisions and devices, no memory.

Batches are told apart by their ids, labels and masks, which code must be able to read. So whole numbers stay real here, and what is
computed from them alone is computed; everything else is fake. It doesn't know what is run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from mgm_lora.model.quantization import replace_quantized_

# What CUDA's autocast brings to float32 and the CPU's leaves in bfloat16, as far as a step of a model comes by it
# (torch's documentation, "CUDA Ops that can autocast to float32").
_WIDENED_ON_A_CARD = (
    "layer_norm",
    "group_norm",
    "softmax.int",
    "log_softmax.int",
    "exp",
    "log",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "rsqrt",
    "reciprocal",
    "sum",
    "sum.dim_IntList",
    "cumsum",
)
_REDUCED = (torch.bfloat16, torch.float16)
_READS_MASKS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class FakeFloats(FakeTensorMode):
    """Makes fake tensors, but of whole numbers that come from whole numbers."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Runs an operation over real whole numbers, infers the shapes of any other."""
        if func is torch.ops.prim.device.default:  # half of all calls
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        kwargs = kwargs or {}
        tensors = list(_tensors_among((*args, *kwargs.values())))
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors) and _gives_whole_numbers(
            func, tensors, args, kwargs
        ):
            return tree_map_only(Tensor, self._fake_if_float, func(*args, **kwargs))
        if func is torch.ops.aten._grouped_mm.default:
            return self._experts_product(*args[:2], offsets=args[2] if len(args) > 2 else kwargs["offs"])
        if func in _READS_MASKS:
            args = (args[0], _places(args[1]), *args[2:])
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _experts_product(self, left: Tensor, right: Tensor, *, offsets: Tensor) -> Any:
        """What a mixture of experts multiplies with, forwards and backwards: torch's own shapes stop at other precisions than bfloat16."""
        if right.dim() == 3:  # rows sorted by expert, times the experts' weights
            shape = (left.shape[0], right.shape[2])
        else:  # the weights' gradients
            shape = (len(offsets), left.shape[0], right.shape[1])  # type: ignore[assignment]
        return FakeTensor(self, torch.empty(shape, dtype=left.dtype, device="meta"), left.device)

    def _fake_if_float(self, tensor: Tensor) -> Tensor:
        return self.from_tensor(tensor) if tensor.is_floating_point() else tensor


@contextmanager
def card_autocast() -> Iterator[None]:
    """A block in which the CPU's autocast also widens what CUDA's does, so that a step traced as the CPU's keeps what a card keeps.

    It holds for the whole process, not only the calling thread: nothing else should compute meanwhile.
    """
    # not as a torch function mode: that one is off while a checkpointed part is computed again
    library = torch.library.Library("aten", "IMPL")
    for name in _WIDENED_ON_A_CARD:
        packet, _, overload = name.partition(".")
        library.impl(name, _widening(getattr(getattr(torch.ops.aten, packet), overload or "default")), "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()


def fake_weights_(model: nn.Module, *, mode: FakeTensorMode) -> None:
    """In place: the parameters, buffers and 4-bit weights of a model on the meta device become fake tensors on the CPU."""
    device = torch.device("cpu")
    done: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in done:
            done[id(tensor)] = (FakeTensor(mode, tensor.detach(), device), tensor)
        return done[id(tensor)][0]

    replace_quantized_(model, fake)
    parameters: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not isinstance(parameter.data, FakeTensor):
                if id(parameter) not in parameters:
                    made = nn.Parameter(fake(parameter.data), requires_grad=parameter.requires_grad)
                    parameters[id(parameter)] = (made, parameter)
                module._parameters[name] = parameters[id(parameter)][0]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = fake(buffer) if buffer.device.type == "meta" else mode.from_tensor(buffer)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A block in which new float tensors are of `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_among(value)


def _gives_whole_numbers(func: Any, tensors: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if tensors:
        return not any(tensor.is_floating_point() for tensor in tensors)
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return not dtype.is_floating_point
    makers: Callable[..., Any] = func.overloadpacket
    if makers is torch.ops.aten.full:
        return not isinstance(args[1], float)
    return makers is torch.ops.aten.arange and not any(isinstance(value, float) for value in args)


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the places where they are true: fake tensors can't be counted, real masks can."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return places


def _widening(operation: Any) -> Callable[..., Any]:
    def widened(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operation(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

    return widened


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _REDUCED else value
