"""Counts the bytes that a training step holds, tensor by tensor: now, at most, and what they were for at that moment.

A storage counts once, from the operation that returns it until the last reference to it is gone, however many views it has; that is what a card's
allocator hands out. Real tensors and fake ones count alike, so that a plan can be held against a real step. What an operation allocates inside itself
(a library's workspace) is not seen. What a byte is for follows from the module that ran; in the backward pass, from the forward operation whose
gradient is being taken. It knows the names of an MGM's parts, not how a step is run.
"""

import re
import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from mgm_lora.model.lean import is_making_host_copy

BATCH = "batch"
ADAPTERS = "adapters"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer"
OPTIMIZER_STEP = "optimizer_step"
LOGITS = "logits"

_PART = re.compile(r"(?:^|\.)(language_model|vision_tower_aux|vision_tower|mm_projector|vlm_uni_\w+?)(?:\.(.*))?$")
_PART_NAMES = {"mm_projector": "projector"}
_AFTERWARDS = {"vision_tower_aux": "activations.mining", "mm_projector": "activations.language_model"}


@dataclass(eq=False, slots=True)
class _Storage:
    num_bytes: int
    part: str


class LiveBytes(TorchDispatchMode):
    """While entered, counts; a model's parameters, buffers and 4-bit states are counted from the start.

    Parts: `weights.PART` (of settings.PART_NAMES), `adapters`, `gradients`, `optimizer` (its state), `optimizer_step`, `batch`,
    `activations.PART`, `logits`. Copies in the machine's memory (offloaded activations) are counted apart, in `host_peak_bytes`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = 0
        self.peak_bytes = 0
        self.host_bytes = 0
        self.host_peak_bytes = 0
        self._model = model
        self._live: dict[int, tuple[_Storage, object]] = {}
        self._events: list[tuple[_Storage, bool]] = []
        self._part = BATCH
        self._named: str | None = None
        self._marks: list[tuple[int, str]] = []
        self._handles: list[RemovableHandle] = []
        for name, tensor in held_tensors(model):
            self.track([tensor], part=weight_part(name))

    def track(self, tensors: Iterable[Tensor | None], *, part: str) -> None:
        """Counts tensors that exist already, or says what counted ones are for, from their beginning."""
        for tensor in tensors:
            if tensor is not None:
                known = self._live.get(tensor.untyped_storage()._cdata)
                if known is None:
                    self._note(tensor, part=part)
                else:
                    known[0].part = part

    @contextmanager
    def naming(self, part: str) -> Iterator[None]:
        """A block in which everything new is for `part`."""
        outer, self._named = self._named, part
        try:
            yield
        finally:
            self._named = outer

    def name_gradients(self) -> None:
        """Says that what hangs on the parameters are gradients: call it after each backward pass."""
        self.track((parameter.grad for parameter in self._model.parameters()), part=GRADIENTS)

    def name_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Says that what the optimizer keeps is its state: call it after its step."""
        for state in optimizer.state.values():
            self.track((value for value in state.values() if isinstance(value, Tensor)), part=OPTIMIZER)

    def parts_at_peak(self, *, without: Collection[str] = ()) -> dict[str, int]:
        """Bytes by part at the moment when their sum, but for the parts in `without`, was largest; largest first."""
        now, peak, peak_at = 0, -1, -1
        for index, (storage, born) in enumerate(self._events):
            if storage.part not in without:
                now += storage.num_bytes if born else -storage.num_bytes
                if now > peak:
                    peak, peak_at = now, index
        parts: defaultdict[str, int] = defaultdict(int)
        for storage, born in self._events[: peak_at + 1]:
            parts[storage.part] += storage.num_bytes if born else -storage.num_bytes
        kept = {part: size for part, size in parts.items() if size and part not in without}
        return dict(sorted(kept.items(), key=lambda item: -item[1]))

    def parts_now(self) -> dict[str, int]:
        """Bytes by part that are alive."""
        parts: defaultdict[str, int] = defaultdict(int)
        for storage, _ in self._live.values():
            parts[storage.part] += storage.num_bytes
        return dict(parts)

    def __enter__(self) -> Self:
        """Starts counting."""
        self._handles = list(self._follow_modules())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Stops counting; the figures stay."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every call goes through torch.compile's guard, which takes longer than the counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it returns."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._note(result)
        elif isinstance(result, list | tuple):
            for item in result:
                if isinstance(item, Tensor):
                    self._note(item)
        return result

    def _note(self, tensor: Tensor, *, part: str | None = None) -> None:
        reference = tensor.untyped_storage()
        key = reference._cdata
        if key in self._live:
            return
        storage = _Storage(num_bytes=reference.nbytes(), part=part or self._current_part())
        on_host = is_making_host_copy()

        def gone(_: object) -> None:
            known = self._live.get(key)
            if known is not None and known[0] is storage:
                del self._live[key]
                self._remove(storage, on_host=on_host)

        self._live[key] = (storage, weakref.ref(reference, gone))
        self._add(storage, on_host=on_host)

    def _add(self, storage: _Storage, *, on_host: bool) -> None:
        if on_host:
            self.host_bytes += storage.num_bytes
            self.host_peak_bytes = max(self.host_peak_bytes, self.host_bytes)
            return
        self.now_bytes += storage.num_bytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        self._events.append((storage, True))

    def _remove(self, storage: _Storage, *, on_host: bool) -> None:
        if on_host:
            self.host_bytes -= storage.num_bytes
            return
        self.now_bytes -= storage.num_bytes
        self._events.append((storage, False))

    def _current_part(self) -> str:
        if self._named is not None:
            return self._named
        node: Any = torch._C._current_autograd_node()
        if node is not None:  # also where a checkpointed part is computed again
            return self._part_of(node._sequence_nr())
        if not self._marks or self._marks[-1][1] != self._part:
            self._marks.append((torch.autograd._get_sequence_nr(), self._part))  # type: ignore[attr-defined]
        return self._part

    def _part_of(self, sequence_number: int) -> str:
        if sequence_number >= 2**63:  # AccumulateGrad's, which comes before all
            return GRADIENTS
        index = bisect_right(self._marks, sequence_number, key=lambda mark: mark[0]) - 1
        return self._marks[index][1] if index >= 0 else BATCH

    def _follow_modules(self) -> Iterator[RemovableHandle]:
        for name, module in self._model.named_modules():
            found = _PART.search(name)
            if found is None:
                continue
            part, inner = found.groups()
            yield module.register_forward_pre_hook(self._turn_to(_activation_part(part, inner)))
            afterwards = _AFTERWARDS.get(part) if inner is None else None
            if part == "language_model" and inner is not None and "." not in inner and inner != "lm_head":
                afterwards = LOGITS  # behind the language model's body comes the loss
            if afterwards is not None:
                yield module.register_forward_hook(self._turn_to(afterwards))

    def _turn_to(self, part: str) -> Callable[..., None]:
        def turn(*_: object) -> None:
            if torch._C._current_autograd_node() is None:
                self._part = part

        return turn


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its name, and what belongs to a 4-bit weight under the weight's name."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        yield from ((name, tensor) for tensor in _tensors_in(getattr(parameter, "quant_state", None)))
    yield from model.named_buffers()


def weight_part(name: str) -> str:
    """What a parameter or buffer counts as, by its name: `adapters` or `weights.PART`."""
    found = _PART.search(name)
    if ".lora_" in name:
        return ADAPTERS
    return f"weights.{_part_name(found.group(1))}" if found else "weights.other"


def _tensors_in(quant_state: object) -> Iterator[Tensor]:
    if quant_state is None:
        return
    for value in vars(quant_state).values():
        if isinstance(value, Tensor):
            yield value
    yield from _tensors_in(getattr(quant_state, "state2", None))


def _activation_part(part: str, inner: str | None) -> str:
    if part == "language_model" and inner is not None and inner.split(".")[0] == "lm_head":
        return LOGITS
    return f"activations.{_part_name(part)}"


def _part_name(module_name: str) -> str:
    return "mining" if module_name.startswith("vlm_uni_") else _PART_NAMES.get(module_name, module_name)
