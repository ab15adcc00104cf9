import random
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from recipes.form_questions import ask_forms, ask_yes_no
from recipes.forms import KINDS, PLACES, SIZES, Form, draw_form
from recipes.looks import OUTLINES


@pytest.fixture(scope="module")
def forms() -> Mapping[str, Form]:
    rng = random.Random(5)
    return {f"{number}.png": draw_form(rng) for number in range(400)}


def test_every_kind_size_and_place_is_drawn_and_none_of_the_tasks_own(forms: Mapping[str, Form]) -> None:
    drawn = forms.values()
    assert {form.kind for form in drawn} == {*KINDS}
    assert {form.size for form in drawn} == {*SIZES}
    assert {form.place for form in drawn} == {*PLACES}
    assert not {*KINDS} & {*OUTLINES}


def test_what_is_told_of_place_and_size_is_what_the_pixels_show(forms: Mapping[str, Form]) -> None:
    for form in forms.values():
        rows, columns = np.nonzero(_drawn(form))
        middle = ((rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2)
        told = divmod(PLACES.index(form.place), 3)
        # a form needn't fill the square it is drawn in: three pixels either way
        assert all(64 * third / 3 - 4 <= at <= 64 * (third + 1) / 3 + 4 for third, at in zip(told, middle, strict=True))
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        third = SIZES.index(form.size)
        assert 10 + 26 * third / 3 - 5 <= longest <= 10 + 26 * (third + 1) / 3 + 2


def test_a_ring_has_a_hole_and_a_heart_has_none(forms: Mapping[str, Form]) -> None:
    large = [form for form in forms.values() if form.size == "large"]
    assert not any(_middle(form) for form in large if form.kind == "ring")
    assert all(_middle(form) for form in large if form.kind == "heart")


def test_the_same_seed_draws_the_same_form() -> None:
    one, other = (draw_form(random.Random(3)) for _ in range(2))
    assert one.picture.tobytes() == other.picture.tobytes()
    assert (one.kind, one.place) == (other.kind, other.place)


def test_questions_are_answered_with_what_was_drawn(forms: Mapping[str, Form]) -> None:
    samples = ask_forms(forms, part="train", families=("form_kind", "form_colour"), seed=1)
    assert len(samples) == 2 * len(forms)
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        form = forms[sample.image]
        assert sample.answer == (form.kind if sample.question_type == "form_kind" else form.colour)


def test_yes_and_no_are_as_often_right_for_every_kind(forms: Mapping[str, Form]) -> None:
    samples = ask_yes_no(forms, part="train", seed=1)
    for kind in KINDS:
        asked = [sample.answer for sample in samples if sample.question.endswith(f" a {kind}?")]
        assert asked.count("yes") == asked.count("no") > 0
    for sample in samples:
        assert (f" a {forms[sample.image].kind}?" in sample.question) == (sample.answer == "yes")


def _drawn(form: Form) -> NDArray[np.bool_]:
    """Where the picture isn't its background, the colour that most of it has."""
    pixels = np.asarray(form.picture).astype(int)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    drawn: NDArray[np.bool_] = np.abs(pixels - colours[counts.argmax()]).sum(-1) > 40
    return drawn


def _middle(form: Form) -> bool:
    mask = _drawn(form)
    rows, columns = np.nonzero(mask)
    return bool(mask[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2])
