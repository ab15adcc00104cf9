"""The models that are measured: MGM-2B's shape and a middle one, with random weights, and the settings of the arms.

What a step costs depends on shapes, not on what the weights know, so nothing is downloaded. It measures nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from mgm_lora.arm_settings import CheckpointedPart, FullSettings, LoraSettings
from mgm_lora.memory.shapes import BatchShape, make_batch
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.settings import SeededTraining

RANK = 16
FOUR_POINTS = ("language_attention", "language_mlp", "vision_attention", "projector")
LABELS_PER_SAMPLE = 96
EVERY_PART: tuple[CheckpointedPart, ...] = ("language_model", "vision_tower", "mining")
VOCABULARY = 256_000

_SPREAD = 0.02
_BLOCK_LENGTH = 1_048_573  # a prime, so that no two rows of a matrix get the same numbers


def mgm_2b() -> MGMConfig:
    """MGM-2B: Gemma-2B, CLIP ViT-L/14-336 and ConvNeXt-L; 3,019,166,144 parameters."""
    gemma = {
        "model_type": "gemma",
        "vocab_size": VOCABULARY,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
    }
    return MGMConfig(text_config=gemma)


def middle_size() -> MGMConfig:
    """A quarter of MGM-2B's width under the whole vocabulary, and a picture of 144 tokens: a step takes seconds on two cores."""
    gemma = {
        "model_type": "gemma",
        "vocab_size": VOCABULARY,
        "hidden_size": 512,
        "intermediate_size": 4096,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 128,
    }
    clip = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "image_size": 168,
        "patch_size": 14,
        "projection_dim": 192,
    }
    pyramid = {"depths": [2, 2, 6, 2], "dims": [48, 96, 192, 384]}
    return MGMConfig(text_config=gemma, vision_config=clip, aux_config=pyramid, image_size_aux=384)


def small_size() -> MGMConfig:
    """A few million parameters; a picture of 144 tokens, rows of up to 512: a quarter of MGM-2B's."""
    gemma = {
        "model_type": "gemma",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "pad_token_id": 0,
    }
    clip = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 168,
        "patch_size": 14,
        "projection_dim": 64,
    }
    pyramid = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
    return MGMConfig(text_config=gemma, vision_config=clip, aux_config=pyramid, image_size_aux=96, max_length=512)


def lora_settings(**step: Any) -> LoraSettings:
    """Rank 16 at the four points of the seed; `step` goes to its StepSettings."""
    point = {"mode": "lora", "rank": RANK, "alpha": 2.0 * RANK}
    points: dict[str, Any] = dict.fromkeys(FOUR_POINTS, point)
    return LoraSettings.model_validate({"learning_rate": 1.0e-4, "step": step, "mining": {"mode": "off"}, **points})


def full_settings(**step: Any) -> FullSettings:
    """The parts that the published recipe trains; `step` goes to its StepSettings."""
    parts = ("language_model", "projector", "mining")
    return FullSettings.model_validate({"learning_rate": 2.0e-5, "parts": parts, "step": step})


def training_settings(global_batch_size: int) -> SeededTraining:
    """Of one optimizer step in bfloat16."""
    return SeededTraining(
        seed=17,
        num_epochs=1.0,
        global_batch_size=global_batch_size,
        group_by_length=True,
        packing=False,
        warmup_share=0.0,
        schedule="constant_with_warmup",
        weight_decay=0.0,
        max_grad_norm=1.0,
        precision="bfloat16",
        evaluations=1,
        num_evaluation_samples=1,
        checkpoints=0,
    )


def samples(num_rows: int, length: int, *, labels_each: int = LABELS_PER_SAMPLE) -> BatchShape:
    """Rows of one sample with one picture each."""
    return BatchShape(num_rows=num_rows, length=length, num_labels=num_rows * labels_each, num_pictures=num_rows)


def random_model(config: MGMConfig, *, dtype: torch.dtype, device: str, seed: int) -> MGMForConditionalGeneration:
    """The model with random weights, made without a copy in another precision or place."""
    model = empty_model(config)
    fill_(model, dtype=dtype, device=device, seed=seed)
    return model


def empty_model(config: MGMConfig) -> MGMForConditionalGeneration:
    """The model with buffers, and with parameters that are shapes only."""
    with init_empty_weights(include_buffers=False):
        model = MGMForConditionalGeneration(config)
    model.tie_weights()
    return model


def fill_(model: nn.Module, *, dtype: torch.dtype, device: str, seed: int) -> None:
    """In place: gives every parameter memory and random numbers, one block of them over and over: at 3 billion, drawing each takes a minute."""
    generator = torch.Generator().manual_seed(seed)
    block = (_SPREAD * torch.randn(_BLOCK_LENGTH, generator=generator)).to(dtype).to(device)
    made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(_repeated(block, shape=parameter.shape), requires_grad=False)
                module._parameters[name] = made[id(parameter)]
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def random_batch(
    shape: BatchShape, *, config: MGMConfig, device: str, dtype: torch.dtype, seed: int
) -> dict[str, Tensor]:
    """A batch of exactly this shape with random tokens and pictures; what is learned is what is read."""
    batch = make_batch(shape, config=config, device="cpu", dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    ids, labels = batch["input_ids"], batch["labels"]
    tokens = torch.randint(10, int(config.text_config.vocab_size), ids.shape, generator=generator)
    batch["input_ids"] = torch.where(ids > 0, tokens, ids)
    batch["labels"] = torch.where(labels > 0, tokens, labels)
    for name in ("images", "images_aux"):
        if name in batch:
            batch[name] = torch.randn(batch[name].shape, generator=generator).to(dtype)
    return {name: values.to(device) for name, values in batch.items()}


def _repeated(block: Tensor, *, shape: Sequence[int]) -> Tensor:
    values = torch.empty(shape, dtype=block.dtype, device=block.device)
    flat = values.view(-1)
    for start in range(0, len(flat), len(block)):
        part = flat[start : start + len(block)]
        part.copy_(block[: len(part)])
    return values
