"""Asks about drawn forms: kind, size, place, main colour, and whether it is of a kind.

The answers are what was drawn. In the yes/no form each kind is as often right as wrong. It doesn't know how a form is drawn.
"""

import random
from collections.abc import Mapping, Sequence

from recipes.conversations import Sample
from recipes.emoji_questions import derange
from recipes.forms import Form

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "form_kind": ("which form is this?", "what form does the picture show?", "what is the form?"),
    "form_size": ("how large is the form?", "what is its size?"),
    "form_place": ("where is the form?", "what is its place in the picture?"),
    "form_colour": ("what is its main color?", "what color is the form?"),
}
_YES_NO = ("is the form a {}?", "does the picture show a {}?")


def ask_forms(forms: Mapping[str, Form], *, part: str, families: Sequence[str], seed: int) -> list[Sample]:
    """One question of each family about every form (by its picture's name), one phrasing each, without yes/no."""
    rng = random.Random(seed)
    return [
        _sample(part, f"{number:05d}-{family}", name, family, rng.choice(PHRASINGS[family]), _fact(form, family))
        for number, (name, form) in enumerate(forms.items())
        for family in families
    ]


def ask_yes_no(forms: Mapping[str, Form], *, part: str, seed: int) -> list[Sample]:
    """One question with the answer yes and one with no about every form's kind (`form_yes_no`)."""
    rng = random.Random(seed)
    kinds = [form.kind for form in forms.values()]
    samples = []
    for number, (name, kind, wrong) in enumerate(zip(forms, kinds, derange(kinds, rng), strict=True)):
        asked = {"yes": kind} | ({"no": wrong} if wrong != kind else {})
        samples += [
            _sample(part, f"{number:05d}-{answer}", name, "form_yes_no", rng.choice(_YES_NO).format(told), answer)
            for answer, told in asked.items()
        ]
    return samples


def _fact(form: Form, family: str) -> str:
    return {
        "form_kind": form.kind,
        "form_size": form.size,
        "form_place": form.place,
        "form_colour": form.colour,
    }[family]


def _sample(part: str, number: str, image: str, question_type: str, question: str, answer: str) -> Sample:
    return Sample(
        id=f"form-{part}-{number}",
        image=image,
        question_type=question_type,
        question=question,
        answer=answer,
    )
