"""When an answer counts as right: it equals the truth after a stated normalisation.

Exact match is what short answers (a colour, a shape, a name) need, and anyone can check it by eye. It knows nothing
of question types or sets.
"""

import unicodedata

FINAL_PUNCTUATION = ".,;:!?。，；：！？"


def normalise_answer(text: str) -> str:
    """The form in which answers are compared.

    In this order: Unicode NFKC; lower case; white space trimmed, and runs of it made one blank; punctuation
    (`. , ; : ! ?` and their full-width forms) taken off the end, unless nothing would be left. Articles, number words
    and inner punctuation stay.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return words.rstrip(FINAL_PUNCTUATION + " ") or words


def is_match(prediction: str, *, truth: str) -> bool:
    """Whether a prediction is the true answer after normalisation."""
    return normalise_answer(prediction) == normalise_answer(truth)
