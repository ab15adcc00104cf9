"""Patch-info-mining: each low-resolution patch asks its own square of the high-resolution features (arXiv 2403.18814,
section 3.2).

Published, keys and values of all M high-resolution positions of a patch are computed: [B, N, M, D] twice. There is one query per patch, so the linear
maps can be moved to the query's and to the pooled value's side: the same function and the same gradients, with nothing wider than the features kept.
With x_m the normalised feature, W and c a linear map's weight and bias, g and b a norm's gain and offset:
  key    q . (W_k (g_k x_m + b_k) + c_k) = (g_k * W_k^T q) . x_m + a term without m, which the softmax over m drops
  value  sum_m a_m (W_v (g_v x_m + b_v) + c_v) = W_v (g_v sum_m a_m x_m + b_v) + c_v, as sum_m a_m = 1
The linear maps may be wrapped (PEFT): a wrapped map's weight is read by pushing the identity through it. It doesn't know by what.

Shapes: B pictures, N patches, M high-resolution positions of a patch, C high-resolution channels, D CLIP's width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

NORM_EPS = 1e-5


def mine_patch_info(
    query_BND: Tensor,
    aux_features_BCHW: Tensor,
    *,
    query_projector: nn.Sequential,
    aux_projector: nn.Sequential,
    val_projector: nn.Sequential,
) -> Tensor:
    """What every patch finds in its square of the high-resolution features, [B, N, D].

    Args:
        query_BND: CLIP's features of the N patches (a square number).
        aux_features_BCHW: the joined pyramid; H = W is a multiple of sqrt(N).
        query_projector: norm and linear map D to D.
        aux_projector: norm and linear map C to D, for the keys.
        val_projector: norm and linear map C to D, for the values.
    """
    patches_BNMC = split_into_patches(aux_features_BCHW, num_patches=query_BND.shape[1])
    with without_autocast(patches_BNMC):  # which on a card would give float32, twice the widest tensor of the model
        normalised_BNMC = F.layer_norm(patches_BNMC, patches_BNMC.shape[-1:], eps=NORM_EPS)
    query = query_projector(query_BND)
    key_side_BNC = (query @ _weight(aux_projector[1])) * _norm(aux_projector).weight
    scores_BNM = torch.einsum("bnc,bnmc->bnm", key_side_BNC, normalised_BNMC) / query.shape[-1] ** 0.5
    attention_BNM = scores_BNM.nan_to_num().softmax(dim=-1)
    pooled_BNC = torch.einsum("bnm,bnmc->bnc", attention_BNM, normalised_BNMC)
    found: Tensor = val_projector[1](pooled_BNC * _norm(val_projector).weight + _norm(val_projector).bias)
    return found


def split_into_patches(features_BCHW: Tensor, *, num_patches: int) -> Tensor:
    """[B, C, H, W] to [B, N, M, C]: row-major patches, each with the row-major positions inside it."""
    batch, channels, height, _ = features_BCHW.shape
    side = round(num_patches**0.5)
    inner = height // side
    grid = features_BCHW.permute(0, 2, 3, 1).reshape(batch, side, inner, side, inner, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, side * side, inner * inner, channels)


def mining_projector(num_in: int, num_out: int) -> nn.Sequential:
    """Norm and linear map, with the published names `0` and `1`."""
    return nn.Sequential(nn.LayerNorm(num_in, eps=NORM_EPS), nn.Linear(num_in, num_out))


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A block in which the tensor's device computes in the precision of what it is given."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def _norm(projector: nn.Sequential) -> nn.LayerNorm:
    return cast(nn.LayerNorm, projector[0])


def _weight(linear: nn.Module) -> Tensor:
    """The [out, in] weight of a linear map, wrapped or not, with the graph to what it is made of."""
    if type(linear) is nn.Linear:
        return linear.weight
    # In float32, so that taking the bias away again loses nothing that bfloat16 can hold.
    dtype = next(linear.parameters()).dtype
    parameters = {name: parameter.float() for name, parameter in linear.named_parameters()}
    weight = next(parameter for parameter in linear.parameters() if parameter.ndim == 2)
    identity = torch.eye(cast(int, linear.in_features), device=weight.device)
    with without_autocast(weight):
        columns: Tensor = functional_call(linear, parameters, (identity,))
        offset: Tensor = functional_call(linear, parameters, (torch.zeros_like(identity[:1]),))
    return (columns - offset).T.to(dtype)
