"""What an operation over fake tensors gives: inferred by torch once per kind of call, and from then on made anew from what was found.

A step repeats itself, layer by layer: of tens of thousands of operations about one in twenty is of a new kind. Torch's fake tensors remember
too, but take a quarter of a millisecond to see that they do; those here take some microseconds. Two calls are of one kind if the operation,
its numbers, and shapes, strides and precisions of its tensors are the same: then so is what comes out, unless values count, and fakes have
none. Where in its storage a tensor begins counts for a few operations alone: slices of one tensor are else of one kind.
It doesn't know which tensors are fake and which are real in a trace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

_CPU = torch.device("cpu")
_aten = torch.ops.aten
_KNOWS_OFFSETS = (
    _aten.as_strided.default,
    _aten.as_strided_copy.default,
    _aten.as_strided_scatter.default,
    _aten.view.dtype,
    _aten.view_as_complex.default,
    _aten.view_as_real.default,
)


class Fake(Tensor):
    """A tensor of the CPU that has a shape, a precision and a storage's size, but no memory; its views share its storage."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def like(cls, tensor: Tensor) -> "Fake":
        """A fake of the tensor's layout, with a storage of its own."""
        return _Layout.of(tensor).fake()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Without a mode that infers, a fake can only be taken for a parameter."""
        if func is _aten.detach.default:
            return _view(_Made(_Layout.of(args[0]), view_of=0), args[0])
        raise NotImplementedError(f"{func} over a fake tensor outside of its mode")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """The layout."""
        return f"Fake({tuple(self.shape)}, {self.dtype})"


class Inference:
    """Finds out what operations give, and remembers it."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._found: dict[Any, Any] = {}

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What `func` gives; some of its tensors may be real.

        Raises:
            NotImplementedError: it changes a tensor's layout in place.
        """
        tensors: list[Tensor] = []
        kind = (func, _described(args, tensors), _described(tuple(kwargs.items()), tensors))
        if func in _KNOWS_OFFSETS:
            kind = (*kind, *(tensor.storage_offset() for tensor in tensors))
        found = self._found.get(kind, self)
        if found is self:
            if torch.Tag.inplace_view in func.tags:
                raise NotImplementedError(f"{func} changes a tensor's layout in place, which fake tensors can't follow")
            found = self._found[kind] = self._infer(func, args, kwargs, tensors)
        return _made(found, tensors)

    def _infer(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]) -> Any:
        """The result with what says how to make it in the place of each tensor."""
        if not func._schema.returns:
            return None  # in place, over whole lists
        stand_ins = _StandIns(self._mode)
        standing_args, standing_kwargs = tree_map_only(Fake, stand_ins.of, (tuple(args), dict(kwargs)))
        with self._mode:
            of_kind = _experts_product if func is _aten._grouped_mm.default else func
            result = of_kind(*standing_args, **standing_kwargs)
        givers = [stand_ins.of(tensor) if isinstance(tensor, Fake) else tensor for tensor in tensors]
        new: list[Tensor] = []  # alive until all are seen, so that no storage's address is used twice
        return tree_map_only(Tensor, lambda tensor: _origin(tensor, givers, new), result)


@dataclass(frozen=True)
class _Layout:
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    num_bytes: int
    """Of the storage."""

    @classmethod
    def of(cls, tensor: Tensor) -> "_Layout":
        storage = tensor.untyped_storage()
        return cls(tensor.shape, tensor.stride(), tensor.dtype, storage.nbytes())

    def fake(self, offset: int = 0) -> Fake:
        return Tensor._make_wrapper_subclass(
            Fake,
            self.size,
            self.stride,
            offset,
            dtype=self.dtype,
            device=_CPU,
            storage_size=self.num_bytes,
        )


@dataclass(frozen=True)
class _Given:
    """The argument itself: the operation works in place."""

    place: int


@dataclass(frozen=True)
class _Made:
    """A new tensor."""

    layout: _Layout
    view_of: int | None
    """The place of the argument whose storage it shares."""
    begins: int = 0
    """Of a view: so many numbers behind that argument's beginning."""


class _StandIns:
    """Torch's fakes in the place of ours, which share storages where ours do."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._made: dict[int, FakeTensor] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def of(self, tensor: Tensor) -> FakeTensor:
        if id(tensor) not in self._made:
            own = tensor.untyped_storage()
            if own._cdata not in self._storages:
                bytes_ = torch.empty(own.nbytes(), dtype=torch.uint8, device="meta")
                self._storages[own._cdata] = bytes_.untyped_storage()
            meta = torch.empty(0, dtype=tensor.dtype, device="meta")
            meta.set_(self._storages[own._cdata], tensor.storage_offset(), tensor.shape, tensor.stride())
            self._made[id(tensor)] = FakeTensor(self._mode, meta, _CPU)
        return self._made[id(tensor)]


def _described(value: Any, tensors: list[Tensor]) -> Any:
    """What of an argument decides the result's layout, hashable; its tensors are put into the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.stride(), value.dtype, value.__class__ is Fake
    if isinstance(value, list | tuple):
        return tuple([_described(item, tensors) for item in value])
    return value.__class__, value  # 1, 1.0 and True are equal


def _experts_product(left: Tensor, right: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """What a mixture of experts multiplies with, forwards and backwards: torch's own inference takes bfloat16 alone."""
    if right.dim() == 3:  # rows sorted by expert, times the experts' weights
        return left.new_empty(left.shape[0], right.shape[2])
    return left.new_empty(len(offs), left.shape[0], right.shape[1])  # the weights' gradients


def _origin(tensor: Tensor, givers: Sequence[Tensor], new: list[Tensor]) -> _Given | _Made:
    for place, giver in enumerate(givers):
        if tensor is giver:
            return _Given(place)
    shared = tensor.untyped_storage()._cdata
    assert all(shared != other.untyped_storage()._cdata for other in new), "two new tensors of one storage"
    for place, giver in enumerate(givers):
        if giver.untyped_storage()._cdata == shared:
            begins = int(tensor.storage_offset() - giver.storage_offset())
            return _Made(_Layout.of(tensor), view_of=place, begins=begins)
    new.append(tensor)
    return _Made(_Layout.of(tensor), view_of=None)


def _made(found: Any, tensors: Sequence[Tensor]) -> Any:
    """The result that was found, over these arguments."""
    if isinstance(found, _Made):
        return found.layout.fake() if found.view_of is None else _view(found, tensors[found.view_of])
    if isinstance(found, _Given):
        return tensors[found.place]
    if isinstance(found, list | tuple):
        return type(found)([_made(item, tensors) for item in found])
    return found


def _view(made: _Made, owner: Tensor) -> Fake:
    tensor = made.layout.fake(offset=int(owner.storage_offset()) + made.begins)
    torch._functionalize_unsafe_set(tensor, owner)
    return tensor
