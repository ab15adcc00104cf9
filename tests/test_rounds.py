"""A few rounds of killing with fixed seeds; `make stress` does twenty."""

import random
from pathlib import Path

import pytest

from .rounds import Reference, artifacts, run_round


@pytest.fixture(scope="module")
def reference(whole_project: Path) -> Reference:
    """Durations are guesses that any machine's stages outlast or don't: what must hold, must hold at every moment."""
    return Reference(digests=artifacts(whole_project), seconds=dict.fromkeys(("train@lora-17", "merge"), 5.0))


@pytest.mark.parametrize("stage, seed", [("train@lora-17", 1), ("merge", 2)])
def test_killed_stage_ends_in_the_same_bytes_and_leaves_nothing(
    whole_project: Path, reference: Reference, stage: str, seed: int
) -> None:
    told = run_round(whole_project, stage, reference=reference, rng=random.Random(seed))
    assert told.kills
