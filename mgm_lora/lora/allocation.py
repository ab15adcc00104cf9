"""AdaLoRA's ranks (arXiv 2303.10512): one budget over all adapted modules, taken down step by step from what matters least.

PEFT's allocator decides; here it is driven, kept and told. A `PeftModel` without a task never runs the forward pass that would add PEFT's penalty
on A and B that aren't orthogonal, so it is added here: once an optimizer step, however many batches that has, and to no held-out loss. It doesn't
know the loop.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn

from mgm_lora.arm_settings import AdaLoraSettings
from mgm_lora.errors import SettingsError
from mgm_lora.lora.methods import ADAPTER_NAME

_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_KEPT = "kept"


class RankAllocation:
    """Of one adapted model."""

    def __init__(self, model: PeftModel, *, budget: AdaLoraSettings) -> None:
        tuner = cast(Any, model.base_model)
        self._budget = budget
        self._tuner = tuner
        self._plain: nn.Module = tuner.model
        self._allocator = tuner.rankallocator
        self._config: AdaLoraConfig = tuner.peft_config[ADAPTER_NAME]

    def begin_(self, *, num_steps: int) -> None:
        """In place: call it before the first step of a training, or of one that goes on, when the number of all its optimizer steps is known.

        Raises:
            SettingsError: there are too few to take ranks away in.
        """
        tinit, tfinal = int(self._budget.tinit_share * num_steps), int(self._budget.tfinal_share * num_steps)
        if num_steps - tfinal < max(2, tinit + 1):
            raise SettingsError(
                f"method adalora needs steps to take ranks away in, but a training of {num_steps} steps, {tinit} before (tinit_share) and {tfinal}"
                " after (tfinal_share), has none: train longer, or take another method"
            )
        self._config.total_step, self._config.tinit, self._config.tfinal = num_steps, tinit, tfinal
        for name, parameter in self._trained().items():
            for kind in _SCORES:  # now, so that a trial of the largest batch finds them; but for those of a checkpoint
                getattr(self._allocator, kind).setdefault(name, torch.zeros_like(parameter))

    def penalty(self) -> Tensor:
        """How far A's rows and B's columns are from orthonormal, weighted: the mean Frobenius norm of their products less the identity."""
        norms = []
        for name, parameter in self._trained().items():
            if ".lora_E." not in name:
                with torch.autocast(parameter.device.type, enabled=False):
                    rows = parameter if ".lora_A." in name else parameter.T
                    norms.append(torch.linalg.norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)))
        return self._budget.orthogonal_weight * torch.stack(norms).mean()

    def follow_(self) -> None:
        """In place: brings the scores up to date with the gradients that hang on the parameters."""
        self._fill_gradients_()
        self._allocator.update_ipt(self._plain)

    def step_(self, step: int) -> None:
        """In place: call it after each optimizer step, counted from 1, while the gradients are still there; takes ranks away where it is time."""
        self._fill_gradients_()
        self._tuner.update_and_allocate(step)

    def ranks(self) -> dict[str, int]:
        """Of every adapted module, by its plain name: the triplets that are not taken away."""
        return {module: sum(mask) for module, mask in self.kept().items()}

    def kept(self) -> dict[str, list[bool]]:
        """Which triplets every adapted module has kept."""
        pattern = self._config.rank_pattern or {}
        kept = {}
        for name, parameter in self._trained().items():
            module, found, _ = name.partition(".lora_E.")
            if found:
                mask = pattern.get(name, pattern.get(f"{module}.lora_E"))  # PEFT shortens the names when it saves
                kept[module] = [True] * len(parameter) if mask is None else list(mask)
        return kept

    def emptied(self) -> set[str]:
        """Names, in the adapted model, of trained parameters that are zero again, since their module has no rank left."""
        return {f"base_model.model.{name}.lora_E.{ADAPTER_NAME}" for name, rank in self.ranks().items() if rank == 0}

    def state(self) -> dict[str, Tensor]:
        """Scores, and which triplets are kept."""
        scores = {
            f"{kind}/{name}": value.detach()
            for kind in _SCORES
            for name, value in getattr(self._allocator, kind).items()
        }
        kept = self._config.rank_pattern or {}
        return scores | {f"{_KEPT}/{name}": torch.tensor(mask, dtype=torch.bool) for name, mask in kept.items()}

    def load_state_(self, state: Mapping[str, Tensor]) -> None:
        """In place: goes on from a `state`, before `begin_`."""
        devices = {name: parameter.device for name, parameter in self._trained().items()}
        for kind in _SCORES:
            getattr(self._allocator, kind).clear()
        kept: dict[str, list[bool]] = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == _KEPT:
                kept[name] = value.tolist()
            else:
                getattr(self._allocator, kind)[name] = value.to(devices[name], copy=True)
        self._config.rank_pattern = kept or None

    def _fill_gradients_(self) -> None:
        for parameter in self._trained().values():
            if parameter.grad is None:  # a part of the model that no sample of this step used
                parameter.grad = torch.zeros_like(parameter)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._plain.named_parameters() if ".lora_" in name and p.requires_grad}
