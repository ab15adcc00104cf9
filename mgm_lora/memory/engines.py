"""What runs a traced step: torch's own optimizer, or a stand-in for DeepSpeed, whose engine can't run over fake tensors.

The stand-in holds on a card what DeepSpeed 0.19's source holds under the configuration that `mgm_lora.training.deepspeed` makes. T numbers
are trained, w bytes each (2 under bfloat16, to which the whole model is cast), n cards share:
- masters and moments (4 T + 8 T bytes): ZeRO-0 whole (fp16/unfused_optimizer.py), 1 to 3 a share of 1/n (zero/stage_1_and_2.py,
  `single_partition_of_fp32_groups`), with offload_optimizer in the machine's memory. ZeRO-0 in float32 is torch's own step.
- gradients: ZeRO-0 and 1 whole, in w bytes; 2 and 3 leave the parameter as soon as they are made and a share of 1/n stays, in 4 bytes
  (`grad_accum_dtype`); offloaded, none stays. The step widens them to 4 bytes where they aren't (`flat_grad_partition.to`).
- buckets of ZERO_BUCKET_NUMBERS, w bytes a number (4 where gradients are kept so): ZeRO 1 to 3 one for gradients, 1 and 2 one more for
  weights, which is no larger than what is trained; offloaded, a buffer as large as the largest trained tensor (`temp_grad_buffer_for_gpu_offload`).
- weights: ZeRO-3 keeps 1/n of all of them (none with offload_parameters) and what is gathered: the largest tensor, and two buckets that
  come early and leave late (`stage3_prefetch_bucket_size`, `stage3_max_live_parameters`).

It doesn't know the forward pass.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from mgm_lora.lora.injection import TrainableModel
from mgm_lora.lora.optimizer import make_optimizer
from mgm_lora.memory.counting import GRADIENTS, OPTIMIZER, OPTIMIZER_STEP, LiveBytes
from mgm_lora.memory.knobs import ZERO_BUCKET_NUMBERS, StepKnobs
from mgm_lora.settings import TrainingSettings

BUCKETS = "buckets"
GATHERED = "weights.gathered"
_FLOAT32 = 4


class Engine(Protocol):
    """What holds gradients and optimizer state, and steps."""

    host_bytes: int
    """What it keeps in the machine's memory."""
    autocasts: bool
    """Whether the forward pass runs under autocast."""

    def hold(self, counter: LiveBytes) -> None:
        """Makes what is there before a step's forward pass, from the second step on."""

    def step(self, counter: LiveBytes) -> None:
        """Clips, and runs the optimizer."""

    def shared(self, parts: dict[str, int]) -> dict[str, int]:
        """The parts at the peak, with the weights as this engine keeps them."""


def make_engine(trainable: TrainableModel, *, knobs: StepKnobs, training: TrainingSettings, on_card: bool) -> Engine:
    """The engine of the knobs; under DeepSpeed's bfloat16 the model is cast in place."""
    if knobs.engine == "deepspeed" and (knobs.zero_stage or training.precision == "bfloat16"):
        return DeepSpeedEngine(trainable, knobs=knobs, training=training, on_card=on_card)
    return TorchEngine(trainable, knobs=knobs, training=training, on_card=on_card)


class TorchEngine:
    """Autocast, and the real optimizer over fake tensors."""

    def __init__(
        self, trainable: TrainableModel, *, knobs: StepKnobs, training: TrainingSettings, on_card: bool
    ) -> None:
        self.host_bytes = 0
        self.autocasts = training.precision == "bfloat16"
        self._allocation = trainable.allocation
        self._parameters = _trained(trainable)
        self._max_norm = training.max_grad_norm
        self._accumulates = knobs.num_accumulated(training.global_batch_size) > 1
        self._optimizer = make_optimizer(trainable, name=knobs.optimizer, weight_decay=training.weight_decay)
        _choose_(self._optimizer, on_card=on_card)

    def hold(self, counter: LiveBytes) -> None:
        """See Engine."""
        for parameter in self._parameters:
            parameter.grad = torch.empty_like(parameter)
        self._optimizer.step()
        if self._allocation is not None:
            self._allocation.follow_()
            counter.track(self._allocation.state().values(), part=OPTIMIZER)
        if not self._accumulates:
            self._optimizer.zero_grad(set_to_none=True)
        counter.name_gradients()
        counter.name_optimizer(self._optimizer)

    def step(self, counter: LiveBytes) -> None:
        """See Engine."""
        with counter.naming(OPTIMIZER_STEP):
            nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
            self._optimizer.step()
            if self._allocation is not None:
                self._allocation.follow_()

    def shared(self, parts: dict[str, int]) -> dict[str, int]:
        """See Engine."""
        return parts


class DeepSpeedEngine:
    """See the head of the file."""

    def __init__(
        self, trainable: TrainableModel, *, knobs: StepKnobs, training: TrainingSettings, on_card: bool
    ) -> None:
        self.autocasts = False
        self._knobs = knobs
        self._model = trainable.model
        self._reduced = training.precision == "bfloat16"
        self._on_card = on_card
        if self._reduced:
            for parameter in trainable.model.parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(torch.bfloat16)
        self._parameters = _trained(trainable)
        self._accumulates = knobs.num_accumulated(training.global_batch_size) > 1
        self._num_trained = sum(parameter.numel() for parameter in self._parameters)
        self._share = self._num_trained if knobs.zero_stage == 0 else -(-self._num_trained // knobs.num_cards)
        self._width = torch.bfloat16 if self._reduced else torch.float32
        self._kept: list[Tensor] = []
        self._masters: Tensor | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self.host_bytes = self._host_bytes()

    def hold(self, counter: LiveBytes) -> None:
        """See Engine."""
        if not self._knobs.offload_optimizer:
            self._make_optimizer(counter)
        if self._knobs.zero_stage >= 2:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._leave)
            if not self._knobs.offload_optimizer:
                self._keep(counter, self._share, dtype=torch.float32, part=GRADIENTS)
        elif self._accumulates:
            for parameter in self._parameters:
                parameter.grad = torch.empty_like(parameter)
            counter.name_gradients()
        self._hold_buckets(counter)

    def step(self, counter: LiveBytes) -> None:
        """See Engine."""
        if self._optimizer is None or self._masters is None:
            return  # in the machine's memory
        with counter.naming(OPTIMIZER_STEP):
            if (
                self._knobs.zero_stage < 2
            ):  # from the parameters' gradients, over a flat one of their width under ZeRO-1
                flat = torch.empty(self._share if self._knobs.zero_stage == 1 else 0, dtype=self._width)
                self._masters.grad = torch.empty_like(self._masters)
                del flat
            else:
                self._masters.grad = self._kept[0]
            self._optimizer.step()

    def shared(self, parts: dict[str, int]) -> dict[str, int]:
        """See Engine."""
        if self._knobs.zero_stage < 3:
            return parts
        parts = dict(parts)
        for name in [name for name in parts if name.startswith("weights.") or name == "adapters"]:
            parts[name] = 0 if self._knobs.offload_parameters else parts[name] // self._knobs.num_cards
        largest = max(parameter.numel() for parameter in self._model.parameters())
        parts[GATHERED] = (largest + 2 * ZERO_BUCKET_NUMBERS) * self._width.itemsize
        return dict(sorted(((name, size) for name, size in parts.items() if size), key=lambda item: -item[1]))

    def _make_optimizer(self, counter: LiveBytes) -> None:
        self._masters = nn.Parameter(torch.empty(self._share, dtype=torch.float32))
        counter.track([self._masters], part=OPTIMIZER)
        self._optimizer = torch.optim.AdamW([self._masters])
        _choose_(self._optimizer, on_card=self._on_card)
        self._masters.grad = torch.empty_like(self._masters)
        self._optimizer.step()
        self._masters.grad = None
        counter.name_optimizer(self._optimizer)

    def _hold_buckets(self, counter: LiveBytes) -> None:
        stage = self._knobs.zero_stage
        if stage == 0:
            return
        wide = stage >= 2 and not self._knobs.offload_optimizer
        self._keep(counter, ZERO_BUCKET_NUMBERS, dtype=torch.float32 if wide else self._width, part=BUCKETS)
        if stage < 3:
            gathered = min(ZERO_BUCKET_NUMBERS, self._num_trained)
            self._keep(counter, gathered, dtype=self._width, part=BUCKETS)
        if self._knobs.offload_optimizer:
            largest = max(parameter.numel() for parameter in self._parameters)
            self._keep(counter, largest, dtype=self._width, part=BUCKETS)

    def _keep(self, counter: LiveBytes, numbers: int, *, dtype: torch.dtype, part: str) -> None:
        self._kept.append(torch.empty(numbers, dtype=dtype))
        counter.track(self._kept[-1:], part=part)

    def _leave(self, parameter: Tensor) -> None:
        """A gradient on its way out: widened first where it is kept so."""
        assert parameter.grad is not None
        if not self._knobs.offload_optimizer:
            parameter.grad.to(torch.float32)
        parameter.grad = None

    def _host_bytes(self) -> int:
        total = 0
        if self._knobs.offload_optimizer:
            total += self._share * (
                3 * _FLOAT32 + _FLOAT32 + self._width.itemsize
            )  # masters, moments, gradients, the way back
        if self._knobs.offload_parameters:
            total += sum(p.numel() for p in self._model.parameters()) * self._width.itemsize // self._knobs.num_cards
        return total


def _trained(trainable: TrainableModel) -> list[nn.Parameter]:
    return [parameter for parameter in trainable.model.parameters() if parameter.requires_grad]


def _choose_(optimizer: torch.optim.Optimizer, *, on_card: bool) -> None:
    """In place: torch's own AdamW goes over all parameters at once on a card, unless told otherwise."""
    for group in optimizer.param_groups:
        if on_card and group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True
