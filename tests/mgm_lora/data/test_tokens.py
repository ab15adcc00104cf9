from collections.abc import Sequence

from mgm_lora.data.llava import Conversation, Turn
from mgm_lora.data.tokens import TokenCounts, measure_tokens


def _conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(id="1", pictures=(), turns=tuple(Turn(*turn) for turn in turns), question_type="")


def test_only_what_can_be_encoded_is_measured() -> None:
    asked = []

    def measure(turns: Sequence[tuple[str, str]]) -> TokenCounts:
        asked.append([text for _, text in turns])
        return TokenCounts(num_tokens=len(asked), num_labels=1, num_labels_kept=1, problem="")

    good, bad = _conversation(("human", "What?"), ("gpt", "This.")), _conversation(("system", "What?"))
    counts = measure_tokens({"train": [good, bad], "heldout": [good]}, measure=measure)
    assert asked == [["What?", "This."]] * 2
    assert [count and count.num_tokens for count in counts["train"]] == [1, None]
    assert [count and count.num_tokens for count in counts["heldout"]] == [2]
