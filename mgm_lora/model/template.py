"""Gemma's conversation template, as pieces of text that are learned or not.

`<start_of_turn>user\\n...<end_of_turn>\\n<start_of_turn>model\\n...<end_of_turn>\\n<eos>`, round after round: what the
model says, up to `<eos>`, is learned; all else is masked. It knows no tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mgm_lora.errors import DataError

PICTURE_MARKER = "<image>"
_ROLES = {"human": "user", "gpt": "model"}


class Piece(NamedTuple):
    """A stretch of the prompt."""

    text: str
    learned: bool


def conversation_pieces(turns: Sequence[tuple[str, str]]) -> list[Piece]:
    """A whole conversation; an opening turn of the model is left out, as in the published recipe.

    Args:
        turns: (role, text) with role `human` or `gpt`, alternating.
    """
    turns = turns[1:] if turns and turns[0][0] == "gpt" else turns
    expected = ["human", "gpt"] * ((len(turns) + 1) // 2)
    if [role for role, _ in turns] != expected[: len(turns)]:
        raise DataError(f"turns must alternate between human and gpt, found {[role for role, _ in turns]}")
    pieces = []
    for role, text in turns:
        pieces.append(Piece(f"<start_of_turn>{_ROLES[role]}\n", learned=False))
        if role == "human":
            pieces.append(Piece(f"{picture_first(text)}<end_of_turn>\n", learned=False))
        else:
            pieces.append(Piece(f"{text}<end_of_turn>\n<eos>", learned=True))
    return pieces


def question_pieces(turns: Sequence[tuple[str, str]]) -> list[Piece]:
    """A conversation that ends with a question, and the opening of the answer."""
    if not turns or turns[-1][0] != "human":
        raise DataError("a question must end with a human turn")
    return [*conversation_pieces(turns), Piece("<start_of_turn>model\n", learned=False)]


def picture_first(text: str) -> str:
    """Moves the picture to the front of its message; several in one message become one."""
    if PICTURE_MARKER not in text:
        return text
    rest = text.replace(PICTURE_MARKER, "").strip()
    return f"{PICTURE_MARKER}\n{rest}".strip()
