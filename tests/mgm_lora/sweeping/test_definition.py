"""A sweep's file is read whole or refused with every mistake in it."""

from pathlib import Path

import pytest

from mgm_lora.errors import SweepError
from mgm_lora.sweeping.definition import find_definitions, read_definition

WRONG = """
about: wrong in every way
arms: [lora, lora]
search: grid
num_trials: 3
vary:
  rate: {entry: arm.learning_rate, uniform: [0.2, 0.1]}
  again: {entry: arm.learning_rate, values: [1.0e-3], of: arm.rank}
  none: {entry: arm.rank}
  loss: {entry: training.num_evaluation_samples, values: [8]}
  place: {entry: data.train, values: [other.json]}
colour: red
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SweepError) as error:
        read_definition(write(tmp_path, WRONG))

    told = str(error.value)
    for words in (
        "mine.yaml' has 6 mistakes:",
        "vary.rate: uniform must be [lowest, highest]",
        "vary.again: `of` says what `times` multiplies",
        "vary.none: must have exactly one of values, times, options, uniform, log_uniform, found none",
        "vary.loss: training.num_evaluation_samples can't be varied",
        "vary.place.entry:",
        "colour: is nothing that a sweep has (misspelt?)",
    ):
        assert words in told


@pytest.mark.parametrize(
    "text, words",
    [
        ("search: grid\nvary: {rate: {entry: arm.learning_rate, log_uniform: [1.0e-4, 1.0e-2]}}", "a grid needs lists"),
        (
            "search: grid\nnum_trials: 2\nvary: {rank: {entry: arm.rank, values: [1]}}",
            "num_trials is of a random search",
        ),
        ("search: random\nvary: {rank: {entry: arm.rank, values: [1]}}", "a random search needs num_trials"),
        (
            "search: grid\nvary: {a: {entry: arm.rank, values: [1]}, b: {options: {x: {arm.rank: 2}}}}",
            "arm.rank is varied by two axes",
        ),
        (
            "search: grid\nvary: {a: {options: {x: {arm.rank: 2}}, entry: arm.rank}}",
            "options name their entries themselves",
        ),
        ("search: random\nnum_trials: 2\nvary: {a: {entry: arm.rank, log_uniform: [0, 1]}}", "bounds above 0"),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SweepError, match=words):
        read_definition(write(tmp_path, f"about: mine\narms: [lora]\n{text}\n"))


def test_training_settings_are_decided_by_one_arm_alone(tmp_path: Path) -> None:
    text = "about: mine\narms: [lora, full]\nsearch: grid\nvary: {w: {entry: training.warmup_share, values: [0.1]}}\n"

    with pytest.raises(SweepError, match="is the same for all arms, so that only one arm can decide it"):
        read_definition(write(tmp_path, text))


def test_no_yaml_and_names_that_no_experiment_can_have_are_told(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="can't be read"):
        read_definition(write(tmp_path, "about: [unclosed"))
    (tmp_path / "My_Sweep.yaml").touch()
    with pytest.raises(SweepError, match=r"small letters, digits and single hyphens, found .*My_Sweep\.yaml"):
        find_definitions(tmp_path)
