"""What steps take: seconds, and on a card the energy that it says it has used. Evaluations and checkpoints are left out.

Energy is the card's own counter (NVML), of the whole card: who shares it pays for the others too. It doesn't know what is trained.
"""

import logging
import time
from contextlib import suppress
from typing import Any

import pynvml
import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)
_JOULES_PER_WH = 3600.0


class StepMeter(TrainerCallback):
    """Add it to a trainer; afterwards it knows what the steps of this process took."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.seconds = 0.0
        self._joules: float | None = 0.0
        self._began = 0.0
        self._joules_before: float | None = None

    @property
    def seconds_per_step(self) -> float | None:
        """None where no step was made: a training that was killed at its end."""
        return self.seconds / self.num_steps if self.num_steps else None

    @property
    def energy_wh(self) -> float | None:
        """Of the steps, in watt-hours; none where no card tells."""
        return None if self._joules is None or not self.num_steps else self._joules / _JOULES_PER_WH

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._joules_before = card_joules()
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the card's work would be in the next step
        self.seconds += time.monotonic() - self._began
        self.num_steps += 1
        after = card_joules()
        known = self._joules is not None and self._joules_before is not None and after is not None
        self._joules = self._joules + after - self._joules_before if known else None  # type: ignore[operator]


def card_joules() -> float | None:
    """What the process's card has used since its driver was loaded; none without a card, or where it doesn't tell (before 2017)."""
    if not torch.cuda.is_available():
        return None
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()  # counts its calls; once more costs microseconds
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid))) / 1000.0
    return None
