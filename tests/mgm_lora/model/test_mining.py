"""The re-ordered form is the published function: values, gradients, whatever wraps the linear maps."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from mgm_lora.model.mining import mine_patch_info, mining_projector, split_into_patches

WIDTH, CHANNELS, PATCHES, SIDE = 12, 20, 9, 12


class Projectors(nn.Module):
    """Three projectors under one roof, so that PEFT can wrap them."""

    def __init__(self) -> None:
        super().__init__()
        self.query = mining_projector(WIDTH, WIDTH)
        self.aux = mining_projector(CHANNELS, WIDTH)
        self.val = mining_projector(CHANNELS, WIDTH)


@pytest.fixture
def projectors() -> Projectors:
    torch.manual_seed(3)
    made = Projectors().double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return (
        torch.randn(2, PATCHES, WIDTH, dtype=torch.float64, requires_grad=True),
        torch.randn(2, CHANNELS, SIDE, SIDE, dtype=torch.float64, requires_grad=True),
    )


def published(query: Tensor, aux: Tensor, projectors: nn.Module) -> Tensor:
    """The published form: keys and values of every position (unified_resampler of MGM's mgm_arch.py), from its description."""
    patches = split_into_patches(aux, num_patches=query.shape[1])
    q, k, v = projectors.query(query), projectors.aux(patches), projectors.val(patches)
    attention = (q[:, :, None] @ (k.transpose(-1, -2) / k.shape[-1] ** 0.5)).softmax(-1)
    return (attention @ v).mean(2)


def mined(query: Tensor, aux: Tensor, projectors: nn.Module) -> Tensor:
    return mine_patch_info(
        query, aux, query_projector=projectors.query, aux_projector=projectors.aux, val_projector=projectors.val
    )


def test_value_and_gradients_are_the_published_ones(projectors: Projectors, features: tuple[Tensor, Tensor]) -> None:
    weights = torch.randn(2, PATCHES, WIDTH, dtype=torch.float64)
    inputs = [*features, *(p for p in projectors.parameters() if p.requires_grad)]
    ours, theirs = mined(*features, projectors), published(*features, projectors)
    ours_grads = torch.autograd.grad((ours * weights).sum(), inputs, allow_unused=True)
    their_grads = torch.autograd.grad((theirs * weights).sum(), inputs)
    assert (ours - theirs).abs().max() <= 1e-14
    for mine, reference in zip(ours_grads, their_grads, strict=True):
        assert ((0 if mine is None else mine) - reference).abs().max() <= 1e-12


def test_only_what_the_softmax_drops_has_no_gradient(projectors: Projectors, features: tuple[Tensor, Tensor]) -> None:
    mined(*features, projectors).sum().backward()
    silent = {name for name, parameter in projectors.named_parameters() if parameter.grad is None}
    assert silent == {"aux.0.bias", "aux.1.bias"}


@pytest.mark.parametrize("use_dora", [False, True])
def test_wrapped_maps_keep_function_and_gradients(
    projectors: Projectors, features: tuple[Tensor, Tensor], use_dora: bool
) -> None:
    config = LoraConfig(r=4, target_modules=r"(query|aux|val)\.1", init_lora_weights=False, use_dora=use_dora)
    wrapped = get_peft_model(projectors.float(), config)
    inputs = [feature.detach().float() for feature in features]
    ours, theirs = mined(*inputs, wrapped.base_model.model), published(*inputs, wrapped.base_model.model)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    ours_grads = torch.autograd.grad(ours.square().sum(), trained)
    their_grads = torch.autograd.grad(theirs.square().sum(), trained)
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
    for mine, reference in zip(ours_grads, their_grads, strict=True):
        assert (mine - reference).abs().max() <= 2e-4 * reference.abs().max() + 1e-5


def test_patches_are_row_major_squares() -> None:
    grid = torch.arange(36.0).reshape(1, 1, 6, 6)
    patches = split_into_patches(grid, num_patches=9)
    assert patches[0, 0, :, 0].tolist() == [0, 1, 6, 7]
    assert patches[0, 5, :, 0].tolist() == [16, 17, 22, 23]
