"""What every family's prompt reads like, word by word, and what of it is learned.

The texts were read off the published `conversation.py` (commit 769820c) and are written out here by hand. transformers'
own chat templates say the same of Llama 2's and Llama 3's frames but for two things: the published Llama 3 has `system`
where Meta's has `assistant`, and the published ChatML has no newline between turns.
"""

import pytest

from mgm_lora.errors import CheckpointError, DataError
from mgm_lora.model.template import TEMPLATES, conversation_pieces, find_template, question_pieces

TURNS = (("human", "<image>\nQ1?"), ("gpt", "A1"), ("human", "Q2?"), ("gpt", "A2"))
READS = {
    "gemma": (
        "<start_of_turn>user\n<image>\nQ1?<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n<eos>"
        "<start_of_turn>user\nQ2?<end_of_turn>\n<start_of_turn>model\nA2<end_of_turn>\n<eos>"
    ),
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
        " polite answers to the user's questions. USER: <image>\nQ1? ASSISTANT: A1</s>USER: Q2? ASSISTANT: A2</s>"
    ),
    "llama_2": (
        "[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being"
        " safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content."
        " Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make any"
        " sense, or is not factually coherent, explain why instead of answering something not correct. If you don't know the"
        " answer to a question, please don't share false information.\n<</SYS>>\n\n<image>\nQ1? [/INST] A1 </s>"
        "<s>[INST] Q2? [/INST] A2 </s>"
    ),
    "mixtral": "[INST] <image>\nQ1? [/INST] A1 </s><s>[INST] Q2? [/INST] A2 </s>",
    "llama_3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You"
        " are able to understand the visual content that the user provides, and assist the user with a variety of tasks using"
        " natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1?<|eot_id|>"
        "<|start_header_id|>system<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ2?<|eot_id|>"
        "<|start_header_id|>system<|end_header_id|>\n\nA2<|eot_id|>"
    ),
    "chatml": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1?<|im_end|><|im_start|>assistant\nA1"
        "<|im_end|><|im_start|>user\nQ2?<|im_end|><|im_start|>assistant\nA2<|im_end|>"
    ),
}
LEARNED = {
    "gemma": ["A1<end_of_turn>\n<eos>", "A2<end_of_turn>\n<eos>"],
    "vicuna_v1": [" A1</s>", " A2</s>"],
    "llama_2": [" A1 </s>", " A2 </s>"],
    "mixtral": [" A1 </s>", " A2 </s>"],
    "llama_3": ["A1<|eot_id|>", "A2<|eot_id|>"],
    "chatml": ["A1<|im_end|>", "A2<|im_end|>"],
}


def test_every_template_is_written_out_here() -> None:
    assert READS.keys() == LEARNED.keys() == TEMPLATES.keys()


@pytest.mark.parametrize("name", READS)
def test_conversation_reads_as_published(name: str) -> None:
    pieces = conversation_pieces(TURNS, template=TEMPLATES[name])
    assert "".join(piece.text for piece in pieces) == READS[name]
    assert [piece.text for piece in pieces if piece.learned] == LEARNED[name]


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("asked", [1, 3])
def test_question_reads_as_training_did_up_to_the_answer(name: str, asked: int) -> None:
    template = TEMPLATES[name]
    question = "".join(piece.text for piece in question_pieces(TURNS[:asked], template=template))
    answer = LEARNED[name][asked // 2]
    assert READS[name].startswith(question + answer)


@pytest.mark.parametrize("name", READS)
def test_opening_turn_of_the_model_is_left_out(name: str) -> None:
    template = TEMPLATES[name]
    assert conversation_pieces((("gpt", "hello"), *TURNS), template=template) == conversation_pieces(
        TURNS, template=template
    )


@pytest.mark.parametrize("name", READS)
def test_turns_out_of_order_are_refused_by_every_family(name: str) -> None:
    with pytest.raises(DataError, match="must alternate"):
        conversation_pieces((("human", "a"), ("human", "b")), template=TEMPLATES[name])
    with pytest.raises(DataError, match="must end with a human turn"):
        question_pieces((("human", "a"), ("gpt", "b")), template=TEMPLATES[name])


@pytest.mark.parametrize("name", [None, "vicuna", "path/to/MGM-2B"])
def test_unknown_template_is_told_with_those_there_are(name: str | None) -> None:
    with pytest.raises(
        CheckpointError, match=r"base\.conversation .* gemma, vicuna_v1, llama_2, llama_3, mixtral, chatml"
    ):
        find_template(name)
