"""The traced peak against the same step over real tensors, over what settings can say."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mgm_lora.arm_settings import FullSettings, LoraSettings, PointSettings
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.measuring import MeasuredStep, measure_steps
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.memory.tracing import TracedStep, make_trainable_, trace_step
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import quantize_language_model_

LANGUAGE = ("language_attention", "language_mlp")
FOUR = (*LANGUAGE, "vision_attention", "projector")
LEAN = ("language_model", "vision_tower", "mining")
RECIPE = ("language_model", "projector", "mining")
RECIPE_AND_TOWERS = (*RECIPE, "vision_tower", "vision_tower_aux")


@dataclass(frozen=True)
class Setting:
    """Short for one way to train."""

    points: tuple[str, ...] = FOUR
    rank: int = 8
    parts: tuple[str, ...] = ()
    shape: BatchShape = field(default_factory=lambda: BatchShape(2, 96, 60, 2))
    knobs: dict[str, Any] = field(default_factory=dict)
    accumulated: int = 1
    reduced: bool = False
    mining_in_full: bool = False
    grid: int = 1


HD_SHAPE = BatchShape(2, 200, 60, 3)
SETTINGS = {
    "plain": Setting(),
    "rank 1": Setting(rank=1),
    "rank 64": Setting(rank=64),
    "language attention": Setting(points=("language_attention",)),
    "language mlp": Setting(points=("language_mlp",)),
    "vision attention": Setting(points=("vision_attention",)),
    "projector": Setting(points=("projector",)),
    "mining": Setting(points=("mining",)),
    "mining in full": Setting(mining_in_full=True),
    "all points": Setting(points=(*FOUR, "mining")),
    "one row": Setting(shape=BatchShape(1, 96, 30, 1)),
    "eight rows": Setting(shape=BatchShape(8, 64, 100, 8)),
    "long rows": Setting(shape=BatchShape(1, 500, 40, 1)),
    "all labelled": Setting(shape=BatchShape(2, 200, 350, 2), knobs={"loss_chunk": 512}),
    "small loss chunk": Setting(shape=BatchShape(2, 200, 350, 2), knobs={"loss_chunk": 16}),
    "no pictures": Setting(shape=BatchShape(2, 96, 60, 0)),
    "many pictures": Setting(shape=BatchShape(2, 128, 60, 8)),
    "packed": Setting(shape=BatchShape(2, 256, 60, 4, packed=True)),
    "checkpointed language model": Setting(knobs={"checkpointing": ("language_model",)}),
    "checkpointed": Setting(knobs={"checkpointing": LEAN}),
    "checkpointed and offloaded": Setting(knobs={"checkpointing": LEAN, "offload_activations": True}),
    "accumulated": Setting(accumulated=3),
    "accumulated and checkpointed": Setting(accumulated=2, knobs={"checkpointing": LEAN}),
    "reduced": Setting(reduced=True),
    "reduced and checkpointed": Setting(reduced=True, knobs={"checkpointing": LEAN}),
    "4 bit": Setting(knobs={"quantization": "nf4"}),
    "4 bit, reduced and checkpointed": Setting(reduced=True, knobs={"quantization": "nf4", "checkpointing": LEAN}),
    "8-bit optimizer": Setting(rank=64, knobs={"optimizer": "adamw_8bit"}),
    "paged optimizer": Setting(rank=64, knobs={"optimizer": "paged_adamw"}),
    "full": Setting(parts=RECIPE),
    "full, checkpointed": Setting(parts=RECIPE, knobs={"checkpointing": LEAN}),
    "full, reduced": Setting(parts=RECIPE, reduced=True, knobs={"checkpointing": LEAN}),
    "full, 8-bit optimizer": Setting(parts=RECIPE, knobs={"checkpointing": LEAN, "optimizer": "adamw_8bit"}),
    "full, accumulated": Setting(parts=RECIPE, accumulated=2),
    "full towers": Setting(parts=("vision_tower", "vision_tower_aux", "projector")),
    "full towers, checkpointed": Setting(
        parts=("vision_tower", "vision_tower_aux"), knobs={"checkpointing": (*LEAN, "vision_tower_aux")}
    ),
    "high definition, all points": Setting(shape=HD_SHAPE, grid=2, points=(*FOUR, "mining"), reduced=True),
    "high definition of nine squares": Setting(shape=BatchShape(1, 200, 30, 1), grid=3, knobs={"checkpointing": LEAN}),
    "high definition, full towers, checkpointed": Setting(
        shape=HD_SHAPE, grid=2, parts=RECIPE_AND_TOWERS, knobs={"checkpointing": (*LEAN, "vision_tower_aux")}
    ),
}


@pytest.fixture(scope="module")
def both(
    small_config: MGMConfig, make_lora: Callable[..., LoraSettings], make_training: Callable[..., Any]
) -> dict[str, tuple[TracedStep, MeasuredStep]]:
    """Every setting, traced and really run."""

    def run(setting: Setting) -> tuple[TracedStep, MeasuredStep]:
        arm: LoraSettings | FullSettings = make_lora(*setting.points, rank=setting.rank)
        if setting.mining_in_full:
            arm = make_lora("projector", mining=PointSettings(mode="full"))
        if setting.parts:
            arm = FullSettings(learning_rate=1e-3, parts=setting.parts)
        rows = setting.shape.num_rows
        config = _in_squares(small_config, grid=setting.grid)
        training = make_training(
            global_batch_size=rows * setting.accumulated, precision="bfloat16" if setting.reduced else "float32"
        )
        knobs = StepKnobs(**{"micro_batch_size": rows, "loss_chunk": 64, **setting.knobs})
        dtype = torch.bfloat16 if setting.reduced else torch.float32
        traced = trace_step(
            config, dtype=dtype, arm=arm, knobs=knobs, shape=setting.shape, training=training, device="cpu"
        )
        model = MGMForConditionalGeneration(config)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        if knobs.quantization == "nf4":
            quantize_language_model_(model)
        trainable = make_trainable_(model, arm=arm, knobs=knobs, training=training)
        measured = measure_steps(trainable, config=config, knobs=knobs, shape=setting.shape, training=training)
        return traced, measured

    return {name: run(setting) for name, setting in SETTINGS.items()}


def _in_squares(config: MGMConfig, *, grid: int) -> MGMConfig:
    if grid == 1:
        return config
    size_aux = grid * config.image_size_aux
    return MGMConfig.from_dict(
        config.to_dict() | {"image_grid": grid, "image_global": True, "image_size_aux": size_aux}
    )


@pytest.fixture(scope="module")
def errors(both: dict[str, tuple[TracedStep, MeasuredStep]]) -> dict[str, float]:
    """Traced over measured, less one."""
    return {name: traced.peak_bytes / measured.counted_bytes - 1 for name, (traced, measured) in both.items()}


def test_plan_is_believed(errors: dict[str, float]) -> None:
    told = "\n".join(f"{error:+8.3%} {name}" for name, error in sorted(errors.items(), key=lambda item: item[1]))
    sizes = [abs(error) for error in errors.values()]
    assert len(sizes) >= 24
    assert statistics.median(sizes) <= 0.02, told
    assert max(sizes) <= 0.05, told
    assert min(errors.values()) >= -0.02, told
