"""How the VQA evaluations prepare an answer, and what it is worth beside the answers of several people.

By the published definition (Antol et al. 2015, arXiv 1505.00468) and the code that servers run: vqaEval.py of GT-Vision-Lab/VQA for VQAv2, the
EvalAI answer processor of Pythia's and LLaVA's M4C evaluator for TextVQA (Singh et al. 2019, arXiv 1904.08920). What looks odd in them is kept,
since figures are to compare with others': a mark beside a blank vanishes and one between letters becomes a blank; one number with a comma in the
answer makes all marks vanish; `none` is 0; VQAv2's people are not prepared where all of them agree, and never in their articles and numbers.
It knows no benchmark's files.
"""

import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_FINAL_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's"
    " isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've"
    " should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd"
    " something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've"
    " we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's"
    " won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
)


def _contractions() -> dict[str, str]:
    """Each contraction with any one apostrophe forgotten, and its right form."""
    forgotten = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return forgotten | {"somebody'd": "somebodyd"}  # the published table has it this way round


_CONTRACTIONS = _contractions()


def vqav2_accuracy(answer: str, *, truths: Sequence[str]) -> float:
    """What an answer is worth beside those of VQAv2's ten people, 0 to 1."""
    agreed = len(set(truths)) == 1
    prepared = truths if agreed else [_without_marks(truth) for truth in truths]
    return soft_accuracy(_plain_words(_without_marks(_one_line(answer))), truths=prepared)


def textvqa_accuracy(answer: str, *, truths: Sequence[str]) -> float:
    """What an answer is worth beside those of TextVQA's ten people, 0 to 1."""
    return soft_accuracy(prepare_answer(answer), truths=[prepare_answer(truth) for truth in truths])


def prepare_answer(text: str) -> str:
    """As the EvalAI answer processor does: lower case, marks and final periods off, number words to digits, no articles, contractions mended."""
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _plain_words(_without_marks(_one_line(lowered)))


def soft_accuracy(answer: str, *, truths: Sequence[str]) -> float:
    """The mean over all but one of the people of min(1, people who agree / 3), of prepared answers.

    Ten people are meant. Where there are others, a third of the rest agreeing is enough, as with ten; a single one must be met.
    """
    num_people, num_equal = len(truths), sum(truth == answer for truth in truths)
    if num_people == 1:
        return float(num_equal)
    left_out_equal = min(1.0, 3 * (num_equal - 1) / (num_people - 1)) if num_equal else 0.0
    left_out_other = min(1.0, 3 * num_equal / (num_people - 1))
    return (num_equal * left_out_equal + (num_people - num_equal) * left_out_other) / num_people


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    has_number_with_comma = _NUMBER_WITH_COMMA.search(text) is not None
    rest = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        rest = rest.replace(mark, "" if beside_blank or has_number_with_comma else " ")
    return _FINAL_PERIOD.sub("", rest)


def _plain_words(text: str) -> str:
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
