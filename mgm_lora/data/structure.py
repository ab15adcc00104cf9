"""What can be said of one conversation alone: do its turns alternate, do its `<image>` markers stand for its pictures?

A finding is "no" where all is well, or a sentence that says what was found; None where another one stands in its way.
It opens no picture and counts no tokens.
"""

from typing import NamedTuple

from mgm_lora.data.llava import PICTURE_MARKER, Conversation

FINE = "no"
"""The value of a finding where nothing was found."""


class Structure(NamedTuple):
    """Findings by the name of their check."""

    wrong_roles: str
    several_pictures: str
    wrong_picture_markers: str | None

    @property
    def is_fine(self) -> bool:
        """Can the conversation be encoded?"""
        return all(finding == FINE for finding in self)


def judge_structure(conversation: Conversation) -> Structure:
    """The findings on a conversation's form."""
    return Structure(
        wrong_roles=_judge_roles(conversation),
        several_pictures=_judge_number(conversation),
        wrong_picture_markers=_judge_markers(conversation),
    )


def _judge_roles(conversation: Conversation) -> str:
    roles = [turn.role for turn in conversation.turns]
    if not roles:
        return "there are no turns"
    for number, (role, turn) in enumerate(zip(roles, conversation.turns, strict=True)):
        expected = "gpt" if number % 2 else "human"
        if role != expected:
            return f"turn {number} is from {role!r}, asked for {expected!r}"
        if expected == "gpt" and not turn.text.strip():
            return f"turn {number} is an empty answer"
    return FINE if len(roles) % 2 == 0 else f"the last turn is from {roles[-1]!r}: there is nothing to learn from it"


def _judge_number(conversation: Conversation) -> str:
    number = len(conversation.pictures)
    return FINE if number <= 1 else f"{number} pictures, but a sample can have one at most: make a sample of each"


def _judge_markers(conversation: Conversation) -> str | None:
    if len(conversation.pictures) > 1:
        return None
    if any(turn.role == "gpt" and PICTURE_MARKER in turn.text for turn in conversation.turns):
        return f"an answer holds {PICTURE_MARKER}"
    # Several markers in one message are one picture: LLaVA's training makes one placeholder of them.
    marked = sum(PICTURE_MARKER in turn.text for turn in conversation.turns)
    if marked == len(conversation.pictures):
        return FINE
    return f"messages that hold {PICTURE_MARKER}: {marked}, pictures of the sample: {len(conversation.pictures)}"
