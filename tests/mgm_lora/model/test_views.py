"""High definition is the published function at every grid, joined a view at a time."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mgm_lora.errors import CheckpointError, DataError
from mgm_lora.model import views
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.convnext import join_stages
from mgm_lora.model.lean import make_lean_
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.views import Square, join_square, join_whole

GRIDS = [(1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]


def make_model(config: MGMConfig, *, grid: int, with_whole: bool, **changes: Any) -> MGMForConditionalGeneration:
    entries = config.to_dict() | {"image_grid": grid, "image_global": with_whole, "image_size_aux": 32 * grid} | changes
    torch.manual_seed(5)
    model = MGMForConditionalGeneration(MGMConfig.from_dict(entries)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_pictures(config: MGMConfig, *, number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(6)
    return (
        torch.randn(number, *config.images_shape, dtype=dtype),
        torch.randn(number, *config.images_aux_shape, dtype=dtype),
    )


def published(model: MGMForConditionalGeneration, images: Tensor, images_aux: Tensor) -> Tensor:
    """Plain and slow, a picture, a view and a patch at a time, from the whole joined pyramid (MGM's README, and DESIGN's words on HD)."""
    grid, with_whole = model.config.image_grid, model.config.image_global
    pictures = []
    for views_of_picture, aux in zip(images, images_aux, strict=True):
        crops = views_of_picture if views_of_picture.ndim == 4 else views_of_picture[None]
        clip = model.vision_tower(crops, output_hidden_states=True).hidden_states[model.config.select_layer][:, 1:]
        stages = model.vision_tower_aux(aux[None])
        size = stages[0].shape[-1]
        resized = [F.interpolate(stage, size=(size, size), mode="bilinear") for stage in stages]
        joined = torch.cat(resized, dim=1)[0]
        part = size // grid
        tokens = []
        if with_whole:
            small = F.interpolate(joined[None], scale_factor=1 / grid, mode="bilinear")[0]
            tokens.append(clip[-1] + mined(model, clip[-1], small))
        for number in range(grid**2):
            row, column = divmod(number, grid)
            tile = joined[:, row * part : (row + 1) * part, column * part : (column + 1) * part]
            tokens.append(clip[number] + mined(model, clip[number], tile))
        pictures.append(model.mm_projector(torch.cat(tokens)))
    return torch.stack(pictures)


def mined(model: MGMForConditionalGeneration, clip_PD: Tensor, aux_CHW: Tensor) -> Tensor:
    """Keys and values of every position, as published."""
    side = round(len(clip_PD) ** 0.5)
    inner = aux_CHW.shape[-1] // side
    found = []
    for number, patch in enumerate(clip_PD):
        row, column = divmod(number, side)
        own = aux_CHW[:, row * inner : (row + 1) * inner, column * inner : (column + 1) * inner].flatten(1).T
        query, key = model.vlm_uni_query_projector(patch), model.vlm_uni_aux_projector(own)
        attention = (key @ query / len(query) ** 0.5).softmax(0)
        found.append(attention @ model.vlm_uni_val_projector(own))
    return torch.stack(found)


@pytest.mark.parametrize("grid, with_whole", GRIDS)
def test_picture_tokens_and_gradients_are_the_published_ones(
    grid: int, with_whole: bool, tiny_config: MGMConfig
) -> None:
    model = make_model(tiny_config, grid=grid, with_whole=with_whole)
    pictures = make_pictures(model.config, number=2)
    ours, theirs = model.encode_images(*pictures), published(model, *pictures)
    assert ours.shape == (2, model.config.num_picture_tokens, model.config.text_config.hidden_size)
    assert (ours - theirs).abs().max() <= 1e-11 * theirs.abs().max()
    weights = torch.randn_like(ours)
    parameters = {name: p for name, p in model.named_parameters() if not name.startswith("language_model")}
    both = [
        torch.autograd.grad((out * weights).sum(), list(parameters.values()), allow_unused=True)
        for out in (ours, theirs)
    ]
    for name, mine, reference in zip(parameters, *both, strict=True):
        mine = torch.zeros_like(parameters[name]) if mine is None else mine
        reference = torch.zeros_like(parameters[name]) if reference is None else reference
        assert (mine - reference).abs().max() <= 1e-10 * max(1.0, reference.abs().max()), name


@pytest.mark.parametrize(
    "grid, side, size_aux",
    # stages of 18, 9, 4, 2 and of 12, 6, 3, 1 and of 60, 30, 15, 7: squares that fall between positions, stages that do not double
    [(2, 3, 72), (3, 4, 48), (5, 3, 240), (2, 6, 96)],
)
def test_squares_need_not_fall_on_whole_positions(grid: int, side: int, size_aux: int, tiny_config: MGMConfig) -> None:
    vision = tiny_config.vision_config.to_dict() | {"image_size": 4 * side}
    model = make_model(tiny_config, grid=grid, with_whole=True, image_size_aux=size_aux, vision_config=vision)
    pictures = make_pictures(model.config, number=1)
    with torch.no_grad():
        ours, theirs = model.encode_images(*pictures), published(model, *pictures)
    assert (ours - theirs).abs().max() <= 1e-11 * theirs.abs().max()


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu"}, {"num_attention_heads": 4}, {"num_attention_heads": 1}])
def test_clip_computes_what_its_configuration_says(changes: dict[str, Any], tiny_config: MGMConfig) -> None:
    plain = make_model(tiny_config, grid=2, with_whole=False)
    vision = tiny_config.vision_config.to_dict() | changes
    model = make_model(tiny_config, grid=2, with_whole=False, vision_config=vision)
    pictures = make_pictures(model.config, number=1)
    with torch.no_grad():
        ours, theirs, other = (
            model.encode_images(*pictures),
            published(model, *pictures),
            plain.encode_images(*pictures),
        )
    assert (ours - theirs).abs().max() <= 1e-11 * theirs.abs().max()
    assert (ours - other).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("grid", [2, 3])
def test_a_views_pyramid_is_what_the_whole_one_holds_there(dtype: torch.dtype, grid: int) -> None:
    torch.manual_seed(7)
    stages = [torch.randn(2, 5, 8 * grid * n, 8 * grid * n).to(dtype) for n in (8, 4, 2, 1)]
    whole = join_stages(stages)
    inner = whole.shape[-1] // grid
    ulp = torch.finfo(dtype).eps * 4
    for row in range(grid):
        for column in range(grid):
            cut = whole[..., row * inner : (row + 1) * inner, column * inner : (column + 1) * inner]
            assert (join_square(stages, square=Square(row, column), grid=grid) - cut).abs().max() <= ulp
    shrunk = F.interpolate(whole.float(), scale_factor=1 / grid, mode="bilinear").to(dtype)
    assert (join_whole(stages, grid=grid) - shrunk).abs().max() <= ulp


class Largest(TorchDispatchMode):
    """The most numbers that a tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))])
        return made


def test_the_whole_pyramid_is_never_joined_or_enlarged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, channels, side = 4, (4, 32, 64, 128), 64
    stages = [torch.randn(1, number, side // 2**i, side // 2**i) for i, number in enumerate(channels)]
    view = sum(channels) * (side // grid) ** 2
    monkeypatch.setattr(views, "_ENLARGED_BYTES", 4 * view)
    with Largest() as largest:
        join_square(stages, square=Square(1, 2), grid=grid)
        join_whole(stages, grid=grid)
    # a square is enlarged with the position around, so that a stage of 2 positions a square is 4 x 4 for 2 x 2 kept
    assert view <= largest.numbers <= 4 * view


@pytest.mark.parametrize("offload", [False, True])
def test_recomputed_high_definition_has_the_same_loss_and_gradients(offload: bool, tiny_config: MGMConfig) -> None:
    model = make_model(tiny_config, grid=2, with_whole=True)
    images, images_aux = make_pictures(model.config, number=3)
    ids = torch.randint(6, 60, (2, 9))
    ids[0, 1:3] = ids[1, 4] = -200
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids,
        "images": images,
        "images_aux": images_aux,
    }
    steps = []
    for parts in ((), ("language_model", "vision_tower", "vision_tower_aux", "mining")):
        make_lean_(model, checkpointing=parts, offload=offload and bool(parts), loss_chunk=4)
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        steps.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    for (loss, gradients), (other, others) in pairwise(steps):
        assert abs(loss - other) <= 1e-13
        assert gradients.keys() == others.keys()
        assert max(float((gradients[name] - others[name]).abs().max()) for name in gradients) <= 1e-12


def test_pictures_of_another_grid_are_told(tiny_config: MGMConfig) -> None:
    model = make_model(tiny_config, grid=2, with_whole=True)
    _, images_aux = make_pictures(model.config, number=1)
    ids = torch.tensor([[-200, 7]])
    with pytest.raises(DataError, match=r"must be \[5, 3, 16, 16\].*found \[4, 3, 16, 16\]"):
        model(ids, torch.ones_like(ids), torch.zeros(1, 4, 3, 16, 16).double(), images_aux)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"image_grid": 0}, "image_grid 0 must be 1 or more"),
        ({"image_grid": 3, "image_size_aux": 64}, "64 must be a multiple of 4 x image_grid 3 x 4 patches"),
    ],
)
def test_grids_that_do_not_fit_are_told(changes: dict[str, Any], told: str, tiny_config: MGMConfig) -> None:
    with pytest.raises(CheckpointError, match=told):
        MGMConfig.from_dict(tiny_config.to_dict() | changes)
