"""What can be said of one conversation alone: do its turns alternate, do its `<image>` markers stand for its pictures?

A finding is "no" where all is well, or a sentence that says what was found. It opens no picture and counts no tokens.
"""

from typing import NamedTuple

from mgm_lora.data.llava import PICTURE_MARKER, Conversation, Turn

FINE = "no"
"""The value of a finding where nothing was found."""


class Structure(NamedTuple):
    """Findings by the name of their check."""

    wrong_roles: str
    wrong_picture_markers: str

    @property
    def is_fine(self) -> bool:
        """Can the conversation be encoded?"""
        return all(finding == FINE for finding in self)


def judge_structure(conversation: Conversation) -> Structure:
    """The findings on a conversation's form."""
    return Structure(
        wrong_roles=_judge_roles(conversation),
        wrong_picture_markers=_judge_markers(conversation),
    )


def canonical_turns(conversation: Conversation) -> tuple[Turn, ...]:
    """With as many markers as pictures, of a fine structure: where a message has several for one picture, the first stays."""
    if sum(turn.text.count(PICTURE_MARKER) for turn in conversation.turns) == len(conversation.pictures):
        return conversation.turns
    return tuple(Turn(turn.role, _collapse(turn.text)) for turn in conversation.turns)


def _collapse(text: str) -> str:
    before, marker, after = text.partition(PICTURE_MARKER)
    return before + marker + after.replace(PICTURE_MARKER, "")


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


def _judge_markers(conversation: Conversation) -> str:
    if any(turn.role == "gpt" and PICTURE_MARKER in turn.text for turn in conversation.turns):
        return f"an answer holds {PICTURE_MARKER}"
    counts = [turn.text.count(PICTURE_MARKER) for turn in conversation.turns]
    marked = sum(count > 0 for count in counts)
    # Several markers in one message may be one picture: LLaVA's training makes one placeholder of them.
    if len(conversation.pictures) in (sum(counts), marked):
        return FINE
    held = f"messages that hold {PICTURE_MARKER}: {marked}, pictures of the sample: {len(conversation.pictures)}"
    return held if sum(counts) == marked else f"{held}, {PICTURE_MARKER} in all: {sum(counts)}"
