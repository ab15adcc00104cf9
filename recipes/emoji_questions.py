"""Asks about emoji pictures: name, group, subgroup, main colour, outline, and yes/no forms of these.

The answers are the data's and the pixels', never made up. In the yes/no forms each value is as often right as wrong, so
that the question doesn't tell the answer. It doesn't know which pictures are trained on and which held out.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from recipes.conversations import Sample
from recipes.emoji import EmojiPicture
from recipes.looks import main_colour, outline

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "emoji_name": ("what is this?", "what does the picture show?", "what is its name?"),
    "emoji_group": ("what kind of thing is this?", "which group is it in?", "what group does it belong to?"),
    "emoji_subgroup": ("which subgroup is it in?", "what is its subgroup?", "what subgroup does it belong to?"),
    "emoji_colour": ("what is its main color?", "what color is it mostly?", "which color covers most of it?"),
    "emoji_outline": ("what is its outline?", "what shape is its outline?", "which outline does it have?"),
}
YES_NO_PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "emoji_name": ("is this {}?", "is {} its name?"),
    "emoji_group": ("is it in the {} group?", "does it belong to the {} group?"),
    "emoji_colour": ("is it mostly {}?", "is {} its main color?", "is its main color {}?"),
    "emoji_outline": ("is its outline a {}?", "does it have the outline of a {}?"),
}
_FACTS: Mapping[str, Callable[[EmojiPicture], str | None]] = {
    "emoji_name": lambda picture: picture.thing.name,
    "emoji_group": lambda picture: picture.thing.group,
    "emoji_subgroup": lambda picture: picture.thing.subgroup,
    "emoji_colour": lambda picture: main_colour(picture.cutout),
    "emoji_outline": lambda picture: outline(picture.cutout),
}
_Value = TypeVar("_Value")


def ask_all(pictures: Sequence[EmojiPicture], *, num_phrasings: int, seed: int) -> list[Sample]:
    """Every family of questions about every picture, in so many phrasings; and the yes/no forms (`emoji_yes_no`)."""
    rng = random.Random(seed)
    samples: list[Sample] = []
    for family in PHRASINGS:
        answered = _answered(pictures, family)
        for picture, answer in answered:
            for phrasing in rng.sample(PHRASINGS[family], num_phrasings):
                samples.append(_sample("train", len(samples), picture, family, phrasing, answer))
        for picture, question, answer in _yes_no(answered, family, rng):
            samples.append(_sample("train", len(samples), picture, "emoji_yes_no", question, answer))
    return samples


def ask_some(pictures: Sequence[EmojiPicture], *, part: str, counts: Mapping[str, int], seed: int) -> list[Sample]:
    """So many questions of each family about as few pictures as that takes, one phrasing each.

    Raises ValueError where the pictures don't answer so many.
    """
    rng = random.Random(seed)
    order = rng.sample(pictures, len(pictures))
    samples: list[Sample] = []
    for family, count in counts.items():
        answered = _answered(order, family)[:count]
        if len(answered) < count:
            raise ValueError(
                f"asked for {count} {family} questions, found {len(answered)} pictures that answer one. Ask for fewer."
            )
        for picture, answer in answered:
            samples.append(_sample(part, len(samples), picture, family, rng.choice(PHRASINGS[family]), answer))
    return samples


def derange(values: Sequence[_Value], rng: random.Random) -> list[_Value]:
    """The same values in another order, at no place the value that was there.

    Where one value has more than half of the places, that can't be: it stays in as few places as possible.
    """
    shuffled = rng.sample(values, len(values))
    for place in range(len(values)):
        if shuffled[place] != values[place]:
            continue
        fits = [
            other
            for other in range(len(values))
            if shuffled[other] != values[place] and shuffled[place] != values[other]
        ]
        if fits:
            other = rng.choice(fits)
            shuffled[place], shuffled[other] = shuffled[other], shuffled[place]
    return shuffled


def _answered(pictures: Sequence[EmojiPicture], family: str) -> list[tuple[EmojiPicture, str]]:
    facts = [(picture, _FACTS[family](picture)) for picture in pictures]
    return [(picture, fact) for picture, fact in facts if fact is not None]


def _yes_no(
    answered: Sequence[tuple[EmojiPicture, str]], family: str, rng: random.Random
) -> list[tuple[EmojiPicture, str, str]]:
    """One yes and one no for each picture, so that no value's question tells its answer."""
    if family not in YES_NO_PHRASINGS:
        return []
    wrong_values = derange([value for _, value in answered], rng)
    asked = []
    for (picture, value), wrong in zip(answered, wrong_values, strict=True):
        asked.append((picture, rng.choice(YES_NO_PHRASINGS[family]).format(value), "yes"))
        if wrong != value:
            asked.append((picture, rng.choice(YES_NO_PHRASINGS[family]).format(wrong), "no"))
    return asked


def _sample(part: str, number: int, picture: EmojiPicture, question_type: str, question: str, answer: str) -> Sample:
    return Sample(
        id=f"emoji-{part}-{number:06d}",
        image=picture.file_name,
        question_type=question_type,
        question=question,
        answer=answer,
    )
