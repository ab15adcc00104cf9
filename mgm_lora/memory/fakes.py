"""Fake tensors for a whole training step: shapes, precisions and devices, no memory.

Batches are told apart by their ids, labels and masks, which code must be able to read. So whole numbers stay real here, and what is
computed from them alone is computed; everything else is fake. It doesn't know what is run, or how a result's shape is found.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mgm_lora.memory.inference import Fake, Inference
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


class FakeFloats(TorchDispatchMode):
    """Makes fake tensors, but of whole numbers that come from whole numbers, and of a single number that comes from one, as an optimizer's count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inference = Inference()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every call goes through torch.compile's guard, which takes longer than the call

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Runs an operation over real whole numbers, infers the shapes of any other."""
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # torch's own notes of what runs
            return func(*args, **kwargs)
        if Fake not in types and _is_real(func, args, kwargs):
            return tree_map_only(Tensor, _fake_if_floats, func(*args, **kwargs))
        if func in _READS_MASKS:
            args = (args[0], _places(args[1]), *args[2:])
        return self._inference.run(func, args, kwargs)


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


def fake_weights_(model: nn.Module) -> None:
    """In place: the parameters, buffers and 4-bit weights of a model on the meta device become fake tensors on the CPU."""
    done: dict[int, tuple[Any, Tensor]] = {}  # with the tensor, whose id is nobody else's as long as it lives

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in done:
            done[id(tensor)] = (Fake.like(tensor), tensor)
        return done[id(tensor)][0]

    replace_quantized_(model, fake)
    parameters: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, Fake):
                if id(parameter) not in parameters:
                    made = nn.Parameter(fake(parameter.data), requires_grad=parameter.requires_grad)
                    parameters[id(parameter)] = (made, parameter)
                module._parameters[name] = parameters[id(parameter)][0]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


def _tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_among(value)


def _is_real(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation without fake tensors gives real ones."""
    tensors = list(_tensors_among((*args, *kwargs.values())))
    if tensors:
        return not any(tensor.is_floating_point() and tensor.ndim for tensor in tensors)
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return not dtype.is_floating_point
    makers: Callable[..., Any] = func.overloadpacket
    if makers is torch.ops.aten.full:
        return not isinstance(args[1], float)
    return makers is torch.ops.aten.arange and not any(isinstance(value, float) for value in args)


def _fake_if_floats(tensor: Tensor) -> Tensor:
    return Fake.like(tensor) if tensor.is_floating_point() and tensor.ndim else tensor


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the places where they are true: fake tensors can't be counted, real masks can."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, Fake):
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
