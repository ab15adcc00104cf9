"""The contract of a training: what was asked is what has gradients, what the optimizer steps, what learns, what changes and what is saved; and all
else is the base, bit by bit.

Seven sets of names, which must be one: resolved from the settings, with `requires_grad`, in the optimizer's groups (each once, at its learning
rate), with a non-zero gradient in the first steps, changed at the end, saved, and the complement of what stayed bit-equal. They are taken from
the model, the optimizer, the backward pass and the files themselves, never from one another. It doesn't know how the set was resolved, nor which
engine runs the step: gradients are seen where autograd hands them out, before an engine takes them.
"""

import hashlib
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from mgm_lora.artifacts import CONTRACT_CHECKS
from mgm_lora.errors import ContractError
from mgm_lora.lora.adapter import stored_name
from mgm_lora.lora.injection import TrainableGroup, TrainableModel
from mgm_lora.model.keys import published_places

logger = logging.getLogger(__name__)
_FIRST_STEPS = 4
"""After the warm-up's. A of LoRA gets its first gradient when B is no longer zero, which takes a step at a learning rate above zero."""
_CHUNK = 2**24
"""Numbers that are brought to the machine's memory at once."""


class Contract:
    """Of one training: make it when the adapter is on and nothing has been trained or resumed."""

    def __init__(self, trainable: TrainableModel) -> None:
        """Raises ContractError where what has `requires_grad` is not what was resolved."""
        self._trainable = trainable
        self._asked = frozenset(name for group in trainable.groups for name in group.parameter_names)
        parameters = dict(trainable.model.named_parameters())
        with_gradients = {name for name, parameter in parameters.items() if parameter.requires_grad}
        _require_same(with_gradients, self._asked, what="have requires_grad")
        self._trained_before = {name: _digests(parameters[name]) for name in self._asked}
        self._frozen_before = _frozen_digests(trainable.model, trained=self._asked)

    def callback(self) -> TrainerCallback:
        """Watches the gradients of the first steps; add it to the trainer."""
        return _WatchGradients(self._trainable)

    def check_end(self, *, num_steps: int, warmup_share: float) -> None:
        """Call it when training is over and the model is whole.

        Raises:
            ContractError: what changed is not what was resolved, or a frozen tensor is not the base's any more.
        """
        parameters = dict(self._trainable.model.named_parameters())
        with_gradients = {name for name, parameter in parameters.items() if parameter.requires_grad}
        _require_same(with_gradients, self._asked, what="have requires_grad at the end")
        changed = {
            name for name, before in self._trained_before.items() if not before & _digests(parameters[name], forms=1)
        }
        if num_steps > math.ceil(warmup_share * num_steps) + _FIRST_STEPS:
            _require_same(changed | self._zero_again(), self._asked, what="changed")
        elif changed != self._asked:
            logger.warning("%d trained tensors did not change in only %d steps", len(self._asked - changed), num_steps)
        frozen = _frozen_digests(self._trainable.model, trained=self._asked)
        moved = {
            name for name in frozen.keys() | self._frozen_before if frozen.get(name) != self._frozen_before.get(name)
        }
        _require_same(moved, frozenset(), what="are frozen but differ from the base")

    def _zero_again(self) -> set[str]:
        """What began at zero and is there again: adalora's scales of a module without a rank."""
        allocation = self._trainable.allocation
        return allocation.emptied() if allocation else set()

    def check_saved(self, folder: Path, *, whole_model: bool) -> None:
        """Raises ContractError where the files hold other parameters than those trained; of a whole model, where they lack one."""
        saved = _stored_keys(folder)
        parameters = dict(self._trainable.model.named_parameters())
        if whole_model:
            expected = set(published_places({name: parameters[name].shape for name in self._asked}))
            saved &= expected
        else:
            expected = {stored_name(name) for name in self._asked}
            saved = {stored_name(key) for key in saved}
        _require_same(saved, expected, what="are saved")

    def table(self) -> dict[str, Any]:
        """For the manifest: what was trained by group, and that every check held."""
        num = {name: parameter.numel() for name, parameter in self._trainable.model.named_parameters()}
        digest = hashlib.sha256("".join(map("\0".join, sorted(self._frozen_before.items()))).encode()).hexdigest()
        return {
            "groups": {
                group.name: {
                    "tensors": len(group.parameter_names),
                    "parameters": sum(num[name] for name in group.parameter_names),
                    "learning_rate": group.learning_rate,
                }
                for group in self._trainable.groups
            },
            "held": list(CONTRACT_CHECKS),
            "frozen_tensors": len(self._frozen_before),
            "frozen_digest": digest,
        }


def check_optimizer(optimizer: torch.optim.Optimizer, *, trainable: TrainableModel) -> None:
    """Raises ContractError unless the optimizer steps every resolved parameter once, at its group's learning rate, and no other."""
    names = {id(parameter): name for name, parameter in trainable.model.named_parameters()}
    stepped = [(names.get(id(p), "?"), group["lr"]) for group in optimizer.param_groups for p in group["params"]]
    wanted = {name: group.learning_rate for group in trainable.groups for name in group.parameter_names}
    _require_same({name for name, _ in stepped}, wanted.keys(), what="are in the optimizer's groups")
    if len(stepped) != len(wanted):
        raise ContractError(
            f"the optimizer steps {len(stepped)} parameters, {len(wanted)} were asked for: one is twice in it"
        )
    wrong = [f"{name} at {rate:g} instead of {wanted[name]:g}" for name, rate in stepped if rate != wanted[name]]
    if wrong:
        raise ContractError(f"{len(wrong)} parameters have another learning rate than asked for: {_some(wrong)}")


class _WatchGradients(TrainerCallback):
    """Sees which parameters are handed a gradient that is not zero, until all were; in steps with pictures, where they need one."""

    def __init__(self, trainable: TrainableModel) -> None:
        self._trainable = trainable
        self._silent = {name: group for group in trainable.groups for name in group.parameter_names}
        self._handles: list[RemovableHandle] = []
        self._num_steps = 0
        self._num_picture_steps = 0
        self._has_picture = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts to watch."""
        parameters = dict(self._trainable.model.named_parameters())
        self._handles = [parameters[name].register_hook(self._watcher(name)) for name in self._silent]
        self._handles.append(self._trainable.mgm.register_forward_pre_hook(self._look, with_kwargs=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises ContractError when the first steps are over and something got no gradient."""
        if not self._handles:
            return
        self._num_steps += 1
        self._num_picture_steps += self._has_picture
        self._has_picture = False
        self._share_over_ranks()
        first_steps = args.get_warmup_steps(state.max_steps) + _FIRST_STEPS
        over = [
            name
            for name, group in self._silent.items()
            if (self._num_picture_steps if _needs_picture(group) else self._num_steps) >= first_steps
        ]
        if over:
            raise ContractError(
                f"{len(over)} parameters were to be trained and got no gradient in {first_steps} steps: {_some(over)}. Their output is not used"
                " in the loss: switch the point off, or leave those layers out"
            )
        if not self._silent:
            self._stop()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises ContractError where parameters need pictures to learn and no sample had one."""
        blind = [name for name, group in self._silent.items() if _needs_picture(group)]
        whole_run = self._handles and self._num_steps == state.max_steps > _FIRST_STEPS
        if whole_run and blind and not self._num_picture_steps:
            raise ContractError(
                f"{len(blind)} parameters were to be trained and got no gradient, since no training sample has a picture: {_some(blind)}."
                " Switch those points off"
            )
        self._stop()

    def _watcher(self, name: str) -> Any:
        def watch(gradient: Tensor) -> None:
            if name in self._silent and bool(gradient.any()):  # without a copy: an embedding's gradient is large
                del self._silent[name]

        return watch

    def _look(self, model: nn.Module, arguments: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        images = inputs.get("images")
        self._has_picture |= model.training and images is not None and len(images) > 0

    def _share_over_ranks(self) -> None:
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, (sorted(self._silent), self._num_picture_steps))
        silent_on_all = set.intersection(*(set(silent) for silent, _ in found))
        self._silent = {name: group for name, group in self._silent.items() if name in silent_on_all}
        self._num_picture_steps = max(steps for _, steps in found)

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _needs_picture(group: TrainableGroup) -> bool:
    return not group.name.startswith("language")


def _frozen_digests(model: nn.Module, *, trained: Collection[str]) -> dict[str, str]:
    """By plain name, so that an engine's and PEFT's wrapping makes no difference; buffers too."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: _digest(tensor) for name, tensor in tensors.items() if name not in trained}


def _digests(tensor: Tensor, *, forms: int = 2) -> set[str]:
    """As it is; and as DeepSpeed would begin with it, which rounds to bfloat16 before the first step."""
    values = tensor.detach()
    return {_digest(form) for form in (values, values.bfloat16().to(values.dtype))[:forms]}


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    numbers = tensor.detach().contiguous().view(-1)
    for start in range(0, len(numbers), _CHUNK):
        digest.update(numbers[start : start + _CHUNK].cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored_keys(folder: Path) -> set[str]:
    keys: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys.update(file.keys())
    return keys


def _require_same(found: Collection[str], asked: Collection[str], *, what: str) -> None:
    missing, extra = set(asked) - set(found), set(found) - set(asked)
    if missing or extra:
        told = [f"{len(extra)} that were not asked for: {_some(extra)}"] if extra else []
        told += [f"{len(missing)} that were asked for are not among them: {_some(missing)}"] if missing else []
        raise ContractError(
            f"the parameters that {what} are not the ones asked for: {'; '.join(told)}. This is a fault of mgm-lora: report it"
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
