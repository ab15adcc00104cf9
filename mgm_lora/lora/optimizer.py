"""The optimizer of what is trained: AdamW with 32-bit moments (torch), or with 8-bit and paged ones (bitsandbytes).

8-bit moments (arXiv 2110.02861) are kept in blocks of 256 with a scale each: about 2 bytes a parameter instead of 8. bitsandbytes keeps 32-bit
moments for a tensor below 4,096 elements; they would save nothing there. Paged moments lie in memory that the driver moves to the machine when
the card is full. It doesn't know what the parameters belong to, or how the loop steps.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from mgm_lora.arm_settings import OptimizerName
from mgm_lora.errors import SettingsError
from mgm_lora.lora.injection import TrainableGroup, TrainableModel

logger = logging.getLogger(__name__)
Groups = list[dict[str, Any]]
_SMALLEST_PAGED = 100_000  # bitsandbytes pages no tensor below this


def make_optimizer(trainable: TrainableModel, *, name: OptimizerName, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer over the trainable groups, each with its learning rate; matrices decay, norms and biases don't.

    Raises:
        SettingsError: the optimizer's kernel does not run on the parameters' device.
    """
    groups = parameter_groups(trainable.model, groups=trainable.groups, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups)
    device = groups[0]["params"][0].device
    make = _from_bitsandbytes(name, device=device)
    with _disable_current_modes():  # a trace's fake tensors can't hold bitsandbytes' code tables
        _try_kernel(make, name=name, device=device)
        return make(groups)


def parameter_groups(model: nn.Module, *, groups: Sequence[TrainableGroup], weight_decay: float) -> Groups:
    """AdamW's groups: per trainable group one with decay and one without."""
    parameters = dict(model.named_parameters())
    result = []
    for group in groups:
        for decays in (True, False):
            members = [parameters[name] for name in group.parameter_names if (parameters[name].ndim >= 2) == decays]
            if members:
                decay = weight_decay if decays else 0.0
                result.append({"params": members, "lr": group.learning_rate, "weight_decay": decay, "name": group.name})
    return result


def _from_bitsandbytes(name: OptimizerName, *, device: torch.device) -> Callable[[Groups], torch.optim.Optimizer]:
    from bitsandbytes.optim.adamw import AdamW  # a second, and only for whom it is asked

    num_bits, paged = (8 if name.endswith("8bit") else 32), name.startswith("paged")
    if paged and device.type == "cpu":
        logger.warning("optimizer %s: nothing is paged on a CPU, its state stays where it is", name)
        paged = False

    def make(groups: Groups) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = AdamW(groups, optim_bits=num_bits, is_paged=paged)  # type: ignore[no-untyped-call]
        return optimizer

    return make


def _try_kernel(make: Callable[[Groups], torch.optim.Optimizer], *, name: str, device: torch.device) -> None:
    """One step over zeros: bitsandbytes says only then that its library doesn't fit the card."""
    parameter = nn.Parameter(torch.zeros(_SMALLEST_PAGED, device=device))
    parameter.grad = torch.zeros_like(parameter)
    try:
        make([{"params": [parameter]}]).step()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        last_words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise SettingsError(
            f"optimizer {name} was asked for, but bitsandbytes has no kernel for it on {device} ({last_words}):"
            " set step.optimizer to adamw, or install a bitsandbytes that fits this torch (`python -m bitsandbytes` tells)"
        ) from error
