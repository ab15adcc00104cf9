"""Steps are metered, and what lies between them isn't."""

import time
from itertools import count

import pytest
import torch

from mgm_lora.training import meter
from mgm_lora.training.meter import StepMeter, card_joules


def _step(steps: StepMeter, *, seconds: float) -> None:
    steps.on_step_begin(None, None, None)
    time.sleep(seconds)
    steps.on_step_end(None, None, None)


def test_only_steps_count() -> None:
    steps = StepMeter()
    assert steps.seconds_per_step is steps.energy_wh is None
    _step(steps, seconds=0.02)
    time.sleep(0.2)  # an evaluation
    _step(steps, seconds=0.02)
    assert steps.num_steps == 2
    assert steps.seconds_per_step is not None
    assert 0.02 <= steps.seconds_per_step < 0.1


def test_energy_is_of_the_steps_alone_and_unknown_where_the_card_was_once_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = count(0.0, 1800.0)  # half a watt-hour each time it is asked
    monkeypatch.setattr(meter, "card_joules", lambda: next(readings))
    steps = StepMeter()
    for _ in range(4):
        _step(steps, seconds=0.0)
    assert steps.energy_wh == pytest.approx(2.0)
    monkeypatch.setattr(meter, "card_joules", lambda: None)
    _step(steps, seconds=0.0)
    assert steps.energy_wh is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_a_machine_without_a_card_tells_nothing() -> None:
    assert card_joules() is None
