"""A tiny model whose answers depend on all that it is asked: a mix-up of rows, pictures or positions shows in what it says."""

from pathlib import Path

import torch

from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor


def make_talkative(base: Path, *, grid: int) -> tuple[MGMForConditionalGeneration, MGMProcessor]:
    """Random weights in float64, and a processor of the same shape; above a grid of 1, the whole picture is a view too."""
    processor = MGMProcessor.from_pretrained(base)
    changes = {"image_grid": grid, "image_global": grid > 1, "image_size_aux": 32 * grid, "max_length": 1024}
    processor.config = MGMConfig.from_dict(processor.config.to_dict() | changes)
    torch.manual_seed(11)
    model = MGMForConditionalGeneration(processor.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.5 * torch.randn_like(parameter)
            if "o_proj" in name or "down_proj" in name:  # else the last token is said again and again
                parameter *= 3
    return model.double().eval(), processor
