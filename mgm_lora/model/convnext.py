"""The auxiliary tower: OpenCLIP's ConvNeXt, which sees the picture in high resolution and returns all four stages.

Written here because the published weights carry timm's key names, transformers' ConvNeXt has others, and timm needs
torchvision. It doesn't know what the features are for.

Shapes: B pictures, C channels, H and W pixels of a stage.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgm_lora.model.config import ConvNextConfig


class ConvNextPyramid(nn.Module):
    """Pictures to the outputs of four stages at 1/4, 1/8, 1/16 and 1/32 of the resolution."""

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__()
        dims, depths = list(config.dims or ()), list(config.depths or ())
        self.vision_stem = nn.Sequential(
            nn.Conv2d(3, dims[0], kernel_size=4, stride=4), LayerNorm2d(dims[0], eps=config.layer_norm_eps)
        )
        inputs = [dims[0], *dims[:-1]]
        self.vision_stages = nn.ModuleList(
            ConvNextStage(num_in, num_out, depth=depth, first=i == 0, config=config)
            for i, (num_in, num_out, depth) in enumerate(zip(inputs, dims, depths, strict=True))
        )

    def forward(self, images_aux: Tensor, run: Callable[..., Any] | None = None) -> list[Tensor]:
        """`images_aux` [B, 3, H, W] to four tensors [B, C_i, H / 2^(i+2), W / 2^(i+2)]; `run(block, features)` runs a block, if given."""
        features = self.vision_stem(images_aux)
        stages = []
        for stage in self.vision_stages:
            features = stage(features, run)
            stages.append(features)
        return stages


def join_stages(stages: Sequence[Tensor]) -> Tensor:
    """Brings the stages to the first one's size and joins their channels: [B, sum C_i, H/4, W/4]."""
    return torch.cat([enlarge(stage, stages[0].shape[-1]) for stage in stages], dim=1)


def enlarge(stage: Tensor, side: int) -> Tensor:
    """A square stage at `side` x `side` positions (bilinear, in float32 at least)."""
    if stage.shape[-1] == side:
        return stage
    enlarged = F.interpolate(widen(stage), size=(side, side), mode="bilinear", align_corners=False)
    return enlarged.to(stage.dtype)


def widen(features: Tensor) -> Tensor:
    """Reduced precision as float32, any other as it is."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


class ConvNextStage(nn.Module):
    """Halves the resolution (but for the first stage) and runs the stage's blocks."""

    def __init__(self, num_in: int, num_out: int, *, depth: int, first: bool, config: ConvNextConfig) -> None:
        super().__init__()
        self.downsample = (
            nn.Identity()
            if first
            else nn.Sequential(
                LayerNorm2d(num_in, eps=config.layer_norm_eps), nn.Conv2d(num_in, num_out, kernel_size=2, stride=2)
            )
        )
        self.blocks = nn.Sequential(*(ConvNextBlock(num_out, config=config) for _ in range(depth)))

    def forward(self, features: Tensor, run: Callable[..., Any] | None = None) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H/2, W/2] (the first stage keeps the size)."""
        features = self.downsample(features)
        for block in self.blocks:
            features = block(features) if run is None else run(block, features)
        return features


class ConvNextBlock(nn.Module):
    """Depthwise 7 x 7, norm, MLP with exact GELU, layer scale, residual (arXiv 2201.03545, figure 4)."""

    def __init__(self, dim: int, *, config: ConvNextConfig) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = ConvNextMlp(dim)
        self.gamma = nn.Parameter(torch.full((dim,), config.layer_scale_init_value))

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        update: Tensor = self.mlp(self.norm(self.conv_dw(features).permute(0, 2, 3, 1)))
        return features + (update * self.gamma).permute(0, 3, 1, 2)


class ConvNextMlp(nn.Module):
    """Two linear maps over the channels, four times as wide in between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """[..., C] to the same shape."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(features))))


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W]."""

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        normalised: Tensor = super().forward(features.permute(0, 2, 3, 1))
        return normalised.permute(0, 3, 1, 2)
