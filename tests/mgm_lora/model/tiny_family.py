"""A tiny model and a tokenizer for every family: the published module trees, special tokens and prefix spaces, a few ten thousand weights.

The tokenizers are trained here, on what the tests say; only their make is that of the real ones: Llama's spaces turned
into marks with raw bytes to fall back on, Llama 3's byte letters. They know no real vocabulary.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, set_seed

from mgm_lora.model.checkpoint import save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.template import TEMPLATES

_SAID = ["what color is it? red, green and blue circles", "and the shape? a square USER ASSISTANT [INST] [/INST] user"]
_LLAMA_3_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


@dataclass(frozen=True)
class TinyFamily:
    """One family at tiny size."""

    conversation: str
    model_type: str
    make_tokenizer: Callable[[], Any]
    text_entries: dict[str, Any]

    def config(self, **changes: Any) -> MGMConfig:
        """Its configuration; 16 picture tokens."""
        tokenizer = self.make_tokenizer()
        text: dict[str, Any] = {
            "model_type": self.model_type,
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        return MGMConfig(
            **{
                "text_config": text | self.text_entries,
                "vision_config": {
                    "hidden_size": 24,
                    "intermediate_size": 48,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 2,
                    "image_size": 16,
                    "patch_size": 4,
                    "projection_dim": 16,
                },
                "aux_config": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], "layer_scale_init_value": 0.5},
                "image_size_aux": 32,
                "max_length": 512,
                "conversation": self.conversation,
            }
            | changes
        )

    def processor(self) -> MGMProcessor:
        """Its tokenizer and template."""
        return MGMProcessor(self.make_tokenizer(), config=self.config())

    def model(self) -> MGMForConditionalGeneration:
        """Random weights, none of them zero."""
        set_seed(1)
        model = MGMForConditionalGeneration(self.config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        return model.eval()

    def save(self, folder: Path) -> Path:
        """A checkpoint folder."""
        save_model(self.model(), folder=folder)
        self.processor().save_pretrained(folder)
        return folder


def llama_tokenizer(*, legacy: bool, special: tuple[str, ...] = (), **names: str) -> LlamaTokenizer:
    """Llama's own make; `legacy` puts a space before what follows a special token."""
    learned = _llama_vocabulary()
    tokenizer = LlamaTokenizer(
        vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]], legacy=legacy, **names
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


@cache
def _llama_vocabulary() -> dict[str, Any]:
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=first, show_progress=False)
    openings = [template.opening for template in TEMPLATES.values()]
    raw.train_from_iterator([*_SAID, *openings] * 3, trainer)
    learned: dict[str, Any] = json.loads(raw.to_str())["model"]
    return learned


def llama_3_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's make: byte letters, its special tokens, and a first token put before every text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=_LLAMA_3_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_SAID * 3, trainer)
    first = ("<|begin_of_text|>", raw.token_to_id("<|begin_of_text|>"))
    raw.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[first])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", additional_special_tokens=[]
    )


def yi_tokenizer() -> LlamaTokenizer:
    """Nous-Hermes-2-Yi's: Llama's make, with ChatML's tokens."""
    special = ("<|im_start|>", "<|im_end|>")
    return llama_tokenizer(legacy=True, special=special, bos_token="<|startoftext|>", eos_token="<|im_end|>")


FAMILIES = {
    "vicuna": TinyFamily("vicuna_v1", "llama", lambda: llama_tokenizer(legacy=False), {"num_key_value_heads": 4}),
    "llama_2": TinyFamily("llama_2", "llama", lambda: llama_tokenizer(legacy=True), {"num_key_value_heads": 4}),
    "llama_3": TinyFamily(
        "llama_3",
        "llama",
        llama_3_tokenizer,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "mixtral": TinyFamily(
        "mixtral",
        "mixtral",
        lambda: llama_tokenizer(legacy=True),
        {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "yi": TinyFamily("chatml", "llama", yi_tokenizer, {}),
}
