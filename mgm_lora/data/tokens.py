"""What a sample costs in tokens, by a measure that the caller brings: this package doesn't know the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from mgm_lora.data.llava import Conversation
from mgm_lora.data.structure import judge_structure


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """One sample's tokens."""

    num_tokens: int
    """Those of its picture included."""
    num_labels: int
    """Tokens that are learned."""
    num_labels_kept: int
    """Learned tokens that are left where the sample is cut at the limit."""
    problem: str
    """Why it can't be encoded; empty where it can."""


MeasureTokens = Callable[[Sequence[tuple[str, str]]], TokenCounts]
"""(role, text) turns, with the picture's marker in them, to counts."""


def measure_tokens(
    files: Mapping[str, Sequence[Conversation]], *, measure: MeasureTokens
) -> dict[str, list[TokenCounts | None]]:
    """The counts of every sample, by file; None for a sample whose structure doesn't allow any."""
    total = sum(len(conversations) for conversations in files.values())
    counts: dict[str, list[TokenCounts | None]] = {file: [] for file in files}
    with tqdm(total=total, desc="counting tokens", unit="sample", mininterval=1.0, delay=2.0) as progress:
        for file, conversations in files.items():
            for conversation in conversations:
                fine = judge_structure(conversation).is_fine
                counts[file].append(measure(conversation.turns) if fine else None)
                progress.update()
    return counts
