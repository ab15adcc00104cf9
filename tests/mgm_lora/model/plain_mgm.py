"""The published MGM written out plainly, formula by formula, over a checkpoint's own keys: one row, one picture, one view, one patch at a time.

It shares no line with the package and no module of transformers: what the two agree on is neither's habit. Gemma and Llama as transformers
4.38 computed them, CLIP, timm's ConvNeXt, and MGM's `unified_resampler` and `prepare_inputs_labels_for_multimodal`. No cache, no batches.

Shapes: L positions, H hidden size, V views, P patches, D CLIP's width, M positions of a patch in high resolution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": lambda x: x * torch.sigmoid(x),
}
CLIP, AUX = "model.vision_tower.vision_tower.vision_model", "model.vision_tower_aux"


@dataclass(frozen=True)
class PlainMGM:
    """A checkpoint's tensors by published key, and its three configurations as they are written in JSON."""

    state: Mapping[str, Tensor]
    entries: Mapping[str, Any]
    vision: Mapping[str, Any]
    depths: Sequence[int]

    def row_logits(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Tensor:
        """[L, vocabulary] of one row without padding; -200 stands for the next picture, as `picture` makes it."""
        rest = iter(pictures)
        table = self.state["model.embed_tokens.weight"]
        return self.language(torch.cat([next(rest) if token == -200 else table[[token]] for token in ids]))

    def greedy(self, ids: Sequence[int], pictures: Sequence[Tensor], *, number: int) -> list[int]:
        """The likeliest tokens, each by a whole pass."""
        said: list[int] = []
        while len(said) < number:
            said.append(int(self.row_logits([*ids, *said], pictures)[-1].argmax()))
        return said

    def picture(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """What stands in the sequence for a picture, [V * P, H]: the whole before the squares."""
        grid, with_whole = self.entries["image_grid"], self.entries["image_global"]
        views = images if images.ndim == 4 else images[None]
        pyramid = self._pyramid(images_aux)
        side = pyramid.shape[-1] // grid
        seen = []
        for number in range(grid * grid):
            row, column = divmod(number, grid)
            seen.append((number, pyramid[:, row * side : (row + 1) * side, column * side : (column + 1) * side]))
        if with_whole:
            small = F.interpolate(pyramid[None], scale_factor=1 / grid, mode="bilinear", align_corners=False)[0]
            seen.insert(0, (grid * grid, small))
        tokens = torch.cat([self._mined(self._clip(views[number]), aux) for number, aux in seen])
        wide = ACTIVATIONS["gelu"](self._linear("model.mm_projector.0", tokens))
        return self._linear("model.mm_projector.2", wide)

    def language(self, embeds_LH: Tensor) -> Tensor:
        """Logits of a row; Gemma scales the whole row, pictures too."""
        is_gemma = "gemma" in self.entries["model_type"]
        hidden = embeds_LH * self.entries["hidden_size"] ** 0.5 if is_gemma else embeds_LH
        for layer in range(self.entries["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            hidden = hidden + self._attention(f"{name}.self_attn", self._rms(f"{name}.input_layernorm", hidden))
            normed = self._rms(f"{name}.post_attention_layernorm", hidden)
            gate = ACTIVATIONS[self.entries["hidden_act"]](self._linear(f"{name}.mlp.gate_proj", normed))
            hidden = hidden + self._linear(f"{name}.mlp.down_proj", gate * self._linear(f"{name}.mlp.up_proj", normed))
        head = self.state["model.embed_tokens.weight" if is_gemma else "lm_head.weight"]
        return self._rms("model.norm", hidden) @ head.T

    def _attention(self, name: str, hidden_LH: Tensor) -> Tensor:
        heads, keys = self.entries["num_attention_heads"], self.entries["num_key_value_heads"]
        width = self.entries.get("head_dim") or self.entries["hidden_size"] // heads
        query, key, value = (self._linear(f"{name}.{kind}_proj", hidden_LH) for kind in "qkv")
        future = torch.ones(len(hidden_LH), len(hidden_LH)).triu(1).bool()
        found = []
        for head in range(heads):
            shared = head // (heads // keys)
            q = self._rotated(query[:, head * width : (head + 1) * width])
            k = self._rotated(key[:, shared * width : (shared + 1) * width])
            scores = (q @ k.T / math.sqrt(width)).masked_fill(future, -torch.inf)
            found.append(scores.softmax(-1) @ value[:, shared * width : (shared + 1) * width])
        return self._linear(f"{name}.o_proj", torch.cat(found, dim=1))

    def _rotated(self, x: Tensor) -> Tensor:
        length, width = x.shape
        half = width // 2
        turned = torch.empty_like(x)
        for number in range(half):
            angle = torch.arange(length, dtype=x.dtype) * self.entries["rope_theta"] ** (-2 * number / width)
            one, other = x[:, number], x[:, number + half]
            turned[:, number] = one * angle.cos() - other * angle.sin()
            turned[:, number + half] = other * angle.cos() + one * angle.sin()
        return turned

    def _rms(self, name: str, x: Tensor) -> Tensor:
        gain = self.state[f"{name}.weight"] + ("gemma" in self.entries["model_type"])
        return x / (x.pow(2).mean(-1, keepdim=True) + self.entries["rms_norm_eps"]).sqrt() * gain

    def _clip(self, view: Tensor) -> Tensor:
        """[P, D] of one view, from `hidden_states[mm_vision_select_layer]`."""
        size, heads = self.vision["patch_size"], self.vision["num_attention_heads"]
        kernel = self.state[f"{CLIP}.embeddings.patch_embedding.weight"].flatten(1)
        patches = F.unfold(view[None], size, stride=size)[0].T @ kernel.T
        x = torch.cat([self.state[f"{CLIP}.embeddings.class_embedding"][None], patches])
        x = self._norm(f"{CLIP}.pre_layrnorm", x + self.state[f"{CLIP}.embeddings.position_embedding.weight"])
        states = [x]
        for layer in range(self.vision["num_hidden_layers"]):
            name = f"{CLIP}.encoder.layers.{layer}"
            normed = self._norm(f"{name}.layer_norm1", x)
            query, key, value = (
                self._linear(f"{name}.self_attn.{kind}_proj", normed).chunk(heads, dim=1) for kind in "qkv"
            )
            found = [
                (q @ k.T / math.sqrt(q.shape[1])).softmax(-1) @ v for q, k, v in zip(query, key, value, strict=True)
            ]
            x = x + self._linear(f"{name}.self_attn.out_proj", torch.cat(found, dim=1))
            wide = self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.layer_norm2", x))
            x = x + self._linear(f"{name}.mlp.fc2", ACTIVATIONS[self.vision["hidden_act"]](wide))
            states.append(x)
        return states[self.entries["mm_vision_select_layer"]][1:]

    def _pyramid(self, images_aux: Tensor) -> Tensor:
        """[sum of the stages' channels, h / 4, w / 4]."""
        x = self._conv(f"{AUX}.vision_stem.0", images_aux[None], stride=4)
        x = self._norm_2d(f"{AUX}.vision_stem.1", x)
        stages = []
        for stage, depth in enumerate(self.depths):
            name = f"{AUX}.vision_stages.{stage}"
            if stage:
                x = self._conv(f"{name}.downsample.1", self._norm_2d(f"{name}.downsample.0", x), stride=2)
            for block in range(depth):
                x = self._block(f"{name}.blocks.{block}", x)
            stages.append(x)
        size = stages[0].shape[-1]
        resized = [F.interpolate(s, size=(size, size), mode="bilinear", align_corners=False) for s in stages]
        return torch.cat(resized, dim=1)[0]

    def _block(self, name: str, x: Tensor) -> Tensor:
        depthwise = self._conv(f"{name}.conv_dw", x, padding=3, groups=x.shape[1])
        wide = self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm", depthwise.permute(0, 2, 3, 1), eps=1e-6))
        update = self._linear(f"{name}.mlp.fc2", ACTIVATIONS["gelu"](wide)) * self.state[f"{name}.gamma"]
        return x + update.permute(0, 3, 1, 2)

    def _mined(self, clip_PD: Tensor, aux_CHW: Tensor) -> Tensor:
        side = round(math.sqrt(len(clip_PD)))
        inner = aux_CHW.shape[-1] // side
        found = []
        for number, patch in enumerate(clip_PD):
            row, column = divmod(number, side)
            own = aux_CHW[:, row * inner : (row + 1) * inner, column * inner : (column + 1) * inner].flatten(1).T
            query, key, value = (
                self._mining(role, x) for role, x in (("query", patch[None]), ("aux", own), ("val", own))
            )
            found.append((query @ (key.T / math.sqrt(key.shape[1]))).softmax(-1) @ value)
        return clip_PD + torch.cat(found)

    def _mining(self, role: str, x: Tensor) -> Tensor:
        name = f"model.vlm_uni_{role}_projector"
        return self._linear(f"{name}.1", self._norm(f"{name}.0", x, eps=1e-5))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0)

    def _norm(self, name: str, x: Tensor, *, eps: float | None = None) -> Tensor:
        eps = self.vision["layer_norm_eps"] if eps is None else eps
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return normed * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def _norm_2d(self, name: str, x: Tensor) -> Tensor:
        return self._norm(name, x.permute(0, 2, 3, 1), eps=1e-6).permute(0, 3, 1, 2)

    def _conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)
