"""What an answer to a question of one's own is worth, 0 to 1: four ways to call it right, each a function of the answer and the true answers.

`exact` for names, colours and labels; `vqa` where several people answered; `anls` for text that is read off a picture, where a wrong letter is not
all wrong; `choice` for questions with lettered options. It knows neither samples nor sets.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from mgm_lora.evaluation.matching import is_match, normalise_answer
from mgm_lora.evaluation.vqa_answers import textvqa_accuracy

Metric = Callable[[str, Sequence[str]], float]
"""(answer, true answers) -> 0 to 1."""
ANLS_THRESHOLD = 0.5
_LETTER = re.compile(r"(?:(?:the )?(?:correct )?(?:answer|option)(?: is|:)* *)?\(?([a-z])(?:[.):]+ *|$)(.*)", re.DOTALL)


def exact(prediction: str, truths: Sequence[str]) -> float:
    """Whether it is one of the true answers (`matching.is_match`)."""
    return float(any(is_match(prediction, truth=truth) for truth in truths))


def vqa(prediction: str, truths: Sequence[str]) -> float:
    """VQA's soft accuracy over the answers of several people, prepared as TextVQA's are; with a single one, whether it is met."""
    return textvqa_accuracy(prediction, truths=truths)


def anls(prediction: str, truths: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al. 2019, arXiv 1907.00490): the nearest true answer counts.

    With NL = edits / letters of the longer, in lower case and with single blanks, it is 1 - NL where NL < 0.5, and else 0: half right is wrong.
    """
    return max((_similarity(_folded(prediction), _folded(truth)) for truth in truths), default=0.0)


def choice(prediction: str, truths: Sequence[str]) -> float:
    """Whether it names a true option: by its letter (`B`, `(b)`, `B. a dog`, `The answer is B.`), or by its text where either side has no letter."""
    return float(any(_names_option(prediction, truth) for truth in truths))


METRICS: Mapping[str, Metric] = {"exact": exact, "vqa": vqa, "anls": anls, "choice": choice}


def _similarity(first: str, second: str) -> float:
    longer = max(len(first), len(second))
    distance = _num_edits(first, second) / longer if longer else 0.0
    return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0


def _num_edits(first: str, second: str) -> int:
    """Levenshtein's distance, row by row."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            replaced = above_left + (letter != other)
            above_left = row[j]
            row[j] = min(row[j] + 1, row[j - 1] + 1, replaced)
    return row[-1]


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _names_option(prediction: str, truth: str) -> bool:
    letter, text = _option(prediction)
    true_letter, true_text = _option(truth)
    if letter and true_letter:
        return letter == true_letter
    return bool(text) and text == true_text


def _option(answer: str) -> tuple[str, str]:
    """An option's letter and text, each empty where the answer doesn't have it."""
    folded = _folded(answer)
    found = _LETTER.fullmatch(folded)
    return (found[1], normalise_answer(found[2])) if found else ("", normalise_answer(folded))
