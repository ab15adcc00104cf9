"""What is read from a bar that tqdm really draws."""

import io
from typing import Any

import pytest
from tqdm import tqdm

from tasks.progress import Bar


def drawn(*, total: int, done: int, desc: str | None = None) -> str:
    text = io.StringIO()
    with tqdm(total=total, desc=desc, file=text, mininterval=0, miniters=1) as bar:
        bar.update(done)
        bar.refresh()
        return text.getvalue().rpartition("\r")[2]


@pytest.mark.parametrize("desc", [None, "lora: answers"])
def test_bar_is_read_with_what_is_left(desc: str | None) -> None:
    bar = Bar.read(drawn(total=80, done=20, desc=desc))

    assert bar is not None
    assert (bar.what, bar.percent, bar.done, bar.total) == (desc or "", 25.0, 20, 80)
    assert str(bar).startswith(f"{desc + ': ' if desc else ''}20 of 80, 00:0")
    assert str(bar).endswith(" left")


def test_bar_that_has_just_begun_knows_no_time() -> None:
    bar = Bar.read(drawn(total=80, done=0))

    assert str(bar) == "0 of 80, time left not known yet"


@pytest.mark.parametrize("line", ["", "step 3/64", "score 58.7 % [54.1, 63.3]", "50% | a table | 3/4 |"])
def test_other_lines_are_no_bars(line: str) -> None:
    assert Bar.read(line) is None


def test_evaluation_within_a_training_is_not_its_progress() -> None:
    def read(**bar: Any) -> Bar:
        found = Bar.read(drawn(**bar))
        assert found is not None
        return found

    training, evaluation = read(total=80, done=20), read(total=8, done=8)
    ended, answers = read(total=80, done=80), read(total=8, done=1, desc="lora")

    assert training.holds(evaluation)
    assert not ended.holds(evaluation)
    assert not training.holds(answers)
    assert not evaluation.holds(training)
