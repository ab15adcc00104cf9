"""The conversation templates of the family, as pieces of text that are learned or not.

A template is six strings around what is asked and what is answered, so that one loop forms every family's prompt. The
texts are those of the published `conversation.py`, its quirks included: what a checkpoint was trained on is what it
understands. Learned is what the model says, with its end token; all else is masked. It knows no tokens and no ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mgm_lora.errors import CheckpointError, DataError

PICTURE_MARKER = "<image>"


class Piece(NamedTuple):
    """A stretch of the prompt."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Template:
    """How a family's conversations read."""

    name: str
    opening: str
    """Before the first question: the system's words, and whose turn it is."""
    reopening: str
    """Before every later question."""
    question_end: str
    answer_opening: str
    """Before an answer; where the model goes on when it is asked."""
    answer_start: str
    """Learned with the answer: a space, where the next token would swallow it."""
    answer_end: str
    """Learned with the answer: how the model ends."""
    stop_tokens: tuple[str, ...]
    """Any of these ends an answer, beside the tokenizer's own end."""
    special_tokens: tuple[str, ...]
    """Those that its texts hold; a tokenizer must know each as one token."""
    pad_token: str
    """What short rows are filled with, where the tokenizer has nothing for it."""
    begins_with_bos: bool = True
    """Whether the published tokenizer puts its first token before the text."""


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant."
    " The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# two spaces after "safe.", as published
_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    " Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content."
    " Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something not"
    " correct. If you don't know the answer to a question, please don't share false information."
)
_LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user"
    " provides, and assist the user with a variety of tasks using natural language."
)
_LLAMA_3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
# not `assistant`: the published roles call both the system and the model so
_LLAMA_3_MODEL = "<|start_header_id|>system<|end_header_id|>\n\n"

GEMMA = Template(
    name="gemma",
    opening="<start_of_turn>user\n",
    reopening="<start_of_turn>user\n",
    question_end="<end_of_turn>\n",
    answer_opening="<start_of_turn>model\n",
    answer_start="",
    answer_end="<end_of_turn>\n<eos>",
    stop_tokens=("<end_of_turn>",),
    special_tokens=("<start_of_turn>", "<end_of_turn>", "<eos>"),
    pad_token="<pad>",
)
VICUNA_V1 = Template(
    name="vicuna_v1",
    opening=f"{_VICUNA_SYSTEM} USER: ",
    reopening="USER: ",
    question_end=" ",
    answer_opening="ASSISTANT:",
    answer_start=" ",
    answer_end="</s>",
    stop_tokens=("</s>",),
    special_tokens=("</s>",),
    pad_token="<unk>",
)
LLAMA_2 = Template(
    name="llama_2",
    opening=f"[INST] <<SYS>>\n{_LLAMA_2_SYSTEM}\n<</SYS>>\n\n",
    reopening="<s>[INST] ",
    question_end=" [/INST]",
    answer_opening="",
    answer_start=" ",
    answer_end=" </s>",
    stop_tokens=("</s>",),
    special_tokens=("<s>", "</s>"),
    pad_token="<unk>",
)
# the published `mistral_instruct`: Llama 2's without a word from the system
MIXTRAL = Template(
    name="mixtral",
    opening="[INST] ",
    reopening="<s>[INST] ",
    question_end=" [/INST]",
    answer_opening="",
    answer_start=" ",
    answer_end=" </s>",
    stop_tokens=("</s>",),
    special_tokens=("<s>", "</s>"),
    pad_token="<unk>",
)
# Two first tokens, the tokenizer's and the text's own: the published mask holds for no other count.
LLAMA_3 = Template(
    name="llama_3",
    opening=f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{_LLAMA_3_SYSTEM}<|eot_id|>{_LLAMA_3_USER}",
    reopening=_LLAMA_3_USER,
    question_end="<|eot_id|>",
    answer_opening=_LLAMA_3_MODEL,
    answer_start="",
    answer_end="<|eot_id|>",
    stop_tokens=("<|eot_id|>",),
    special_tokens=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    pad_token="<|reserved_special_token_0|>",
)
# the published `chatml_direct`, of Yi; no newline after a turn, and no first token
CHATML = Template(
    name="chatml",
    opening="<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n",
    reopening="<|im_start|>user\n",
    question_end="<|im_end|>",
    answer_opening="<|im_start|>assistant\n",
    answer_start="",
    answer_end="<|im_end|>",
    stop_tokens=("<|im_end|>",),
    special_tokens=("<|im_start|>", "<|im_end|>"),
    pad_token="<unk>",
    begins_with_bos=False,
)
TEMPLATES = {template.name: template for template in (GEMMA, VICUNA_V1, LLAMA_2, LLAMA_3, MIXTRAL, CHATML)}


def find_template(name: str | None) -> Template:
    """The template of that name; raises CheckpointError where there is none, or no name."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    found = "none" if name is None else f"'{name}'"
    raise CheckpointError(
        f"the checkpoint needs a conversation template, found {found}: set base.conversation in params.yaml (or `conversation` in the"
        f" checkpoint's config.json) to the one it was trained with: {', '.join(TEMPLATES)}"
    )


def conversation_pieces(turns: Sequence[tuple[str, str]], *, template: Template = GEMMA) -> list[Piece]:
    """A whole conversation; an opening turn of the model is left out, as in the published recipe.

    Args:
        turns: (role, text) with role `human` or `gpt`, alternating.
        template: of the checkpoint that reads it.
    """
    turns = turns[1:] if turns and turns[0][0] == "gpt" else turns
    expected = ["human", "gpt"] * ((len(turns) + 1) // 2)
    if [role for role, _ in turns] != expected[: len(turns)]:
        raise DataError(f"turns must alternate between human and gpt, found {[role for role, _ in turns]}")
    pieces = []
    for number, (role, text) in enumerate(turns):
        if role == "human":
            before = template.reopening if number else template.opening
            pieces.append(Piece(f"{before}{picture_first(text)}{template.question_end}", learned=False))
        else:
            pieces.append(Piece(template.answer_opening, learned=False))
            pieces.append(Piece(f"{template.answer_start}{text}{template.answer_end}", learned=True))
    return pieces


def question_pieces(turns: Sequence[tuple[str, str]], *, template: Template = GEMMA) -> list[Piece]:
    """A conversation that ends with a question, and the opening of the answer."""
    if not turns or turns[-1][0] != "human":
        raise DataError("a question must end with a human turn")
    return [*conversation_pieces(turns, template=template), Piece(template.answer_opening, learned=False)]


def picture_first(text: str) -> str:
    """Moves the picture to the front of its message; several in one message become one."""
    if PICTURE_MARKER not in text:
        return text
    rest = text.replace(PICTURE_MARKER, "").strip()
    return f"{PICTURE_MARKER}\n{rest}".strip()
