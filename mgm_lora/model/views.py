"""The views of a picture: where the squares of its grid lie in the pyramid's features, and how the whole is seen at a square's size.

A picture in high definition is looked at `grid` x `grid` times by CLIP, a square at a time, and perhaps once more as a whole. ConvNeXt sees it
once, and its joined features would be `grid`^2 times as large as those of a plain picture (849 MB in MGM-2B's bfloat16 at a grid of 2). So
each view's part is joined alone, and is what cutting (or shrinking) the joined whole would give. It doesn't know what the views are asked.

Shapes: B pictures, C_i channels of a stage, H = W positions of the first stage along a side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mgm_lora.model.convnext import enlarge, join_stages, widen

_ENLARGED_BYTES = 2**26


class Square(NamedTuple):
    """One square of a picture's grid."""

    row: int
    column: int


def squares(grid: int) -> list[Square]:
    """Row by row, as the crops of a picture are numbered."""
    return [Square(row, column) for row in range(grid) for column in range(grid)]


def join_square(stages: Sequence[Tensor], *, square: Square, grid: int) -> Tensor:
    """The joined pyramid's features in a square of the grid, [B, sum C_i, H/grid, W/grid]."""
    if grid == 1:
        return join_stages(stages)
    return torch.cat([_cut_enlarged(stage, stages[0].shape[-1], square=square, grid=grid) for stage in stages], dim=1)


def join_whole(stages: Sequence[Tensor], *, grid: int) -> Tensor:
    """The joined pyramid shrunk to a square's size, [B, sum C_i, H/grid, W/grid]."""
    if grid == 1:
        return join_stages(stages)
    side = stages[0].shape[-1]
    channels = max(1, _ENLARGED_BYTES // (4 * side**2 * len(stages[0])))
    parts = [part for stage in stages for part in stage.split(channels, dim=1)]
    return torch.cat([_resize(enlarge(part, side), side // grid) for part in parts], dim=1)


def _cut_enlarged(stage: Tensor, full: int, *, square: Square, grid: int) -> Tensor:
    side = stage.shape[-1]
    inner, factor = side // grid, full // side
    if side == full or side % grid or full % side:  # a square need not fall on whole positions of a small stage
        return _cut(enlarge(stage, full), square=square, inner=full // grid)
    top, left = square.row * inner, square.column * inner
    # one position around is all that bilinear interpolation looks at; at the picture's edge it sees the edge's again
    near = stage[..., max(top - 1, 0) : top + inner + 1, max(left - 1, 0) : left + inner + 1]
    edges = [int(left == 0), int(left + inner == side), int(top == 0), int(top + inner == side)]
    enlarged = _resize(F.pad(widen(near), edges, mode="replicate"), (inner + 2) * factor)
    return enlarged[..., factor:-factor, factor:-factor].to(stage.dtype)


def _cut(features: Tensor, *, square: Square, inner: int) -> Tensor:
    top, left = square.row * inner, square.column * inner
    return features[..., top : top + inner, left : left + inner]


def _resize(features: Tensor, side: int) -> Tensor:
    resized = F.interpolate(widen(features), size=(side, side), mode="bilinear", align_corners=False)
    return resized.to(features.dtype)
