"""The names of the weights: published key <-> place in our module tree, and how separately kept towers name theirs. All mapping is in this file.

transformers 5 drops CLIP's `vision_model` level and the tower's own `vision_tower` level is ours to drop; the language
model keeps its head inside, and holds Mixtral's experts in two tensors where the published files have three per expert.
A key that is left out on purpose matches a pattern here; nothing else is. It doesn't know files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
AUX_PREFIX = "model.vision_tower_aux."
HEAD_KEY = "lm_head.weight"

_PUBLISHED_TO_OURS = (
    (VISION_PREFIX, "vision_tower."),
    (AUX_PREFIX, "vision_tower_aux."),
    ("model.mm_projector.", "mm_projector."),
    ("model.vlm_uni_", "vlm_uni_"),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_PUBLISHED_ROUTER = ".block_sparse_moe.gate.weight"
_ROUTER = ".mlp.gate.weight"
_EXPERTS = re.compile(r"(.+)\.mlp\.experts\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True)
class Place:
    """Where a published weight lies in our model: a whole tensor, or a part of one."""

    name: str
    part: tuple[int | slice, ...] = ()


def published_places(shapes: Mapping[str, Sequence[int]]) -> dict[str, Place]:
    """Every published key of a model with these names and shapes, and its place: one to one, each number of ours in one of them."""
    return {key: place for name, shape in shapes.items() for key, place in _places_of(name, shape)}


def to_ours(published: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` to `language_model.model.layers.0.mlp.up_proj.weight`; an unknown key stays as it is."""
    for theirs, ours in _PUBLISHED_TO_OURS:
        if published.startswith(theirs):
            return (ours + published.removeprefix(theirs)).replace(_PUBLISHED_ROUTER, _ROUTER)
    return published


def to_published(ours: str) -> str:
    """The inverse of `to_ours`, for whole tensors."""
    for theirs, name in _PUBLISHED_TO_OURS:
        if ours.startswith(name):
            return (theirs + ours.removeprefix(name)).replace(_ROUTER, _PUBLISHED_ROUTER)
    return ours


@dataclass(frozen=True)
class FileNames:
    """How files of one kind name what the published checkpoint holds."""

    kind: str
    prefixes: tuple[tuple[str, str], ...]
    """Theirs and the published one; the first that fits is taken, both ways."""
    left_out: re.Pattern[str]
    """Keys that MGM has no use for."""

    def leaves_out(self, key: str) -> bool:
        """Whether a key of such a file is none of MGM's, and known to be none."""
        return self.left_out.fullmatch(key) is not None

    def to_published(self, key: str) -> str:
        """The published name of a file's key; an unknown key stays as it is."""
        for theirs, published in self.prefixes:
            if key.startswith(theirs):
                return published + key.removeprefix(theirs)
        return key

    def from_published(self, key: str) -> str:
        """The inverse of `to_published`."""
        for theirs, published in self.prefixes:
            if key.startswith(published):
                return theirs + key.removeprefix(published)
        return key


# Buffers that older versions of transformers wrote; they hold counts and constants, not what was learned.
_OLD_BUFFERS = r"(.+\.)?embeddings\.position_ids|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"

MGM_NAMES = FileNames(kind="MGM", prefixes=(), left_out=re.compile(_OLD_BUFFERS))

CLIP_NAMES = FileNames(
    kind="CLIP",
    prefixes=(
        ("vision_model.", VISION_PREFIX),
        # as transformers 5 writes a vision model without its text side
        ("embeddings.", f"{VISION_PREFIX}embeddings."),
        ("pre_layrnorm.", f"{VISION_PREFIX}pre_layrnorm."),
        ("encoder.", f"{VISION_PREFIX}encoder."),
        ("post_layernorm.", f"{VISION_PREFIX}post_layernorm."),
    ),
    left_out=re.compile(rf"{_OLD_BUFFERS}|text_model\..+|(text|visual)_projection\.weight|logit_scale"),
)

OPENCLIP_NAMES = FileNames(
    kind="OpenCLIP",
    prefixes=(
        ("visual.trunk.stem.", f"{AUX_PREFIX}vision_stem."),
        ("visual.trunk.stages.", f"{AUX_PREFIX}vision_stages."),
    ),
    left_out=re.compile(
        # the picture's pooled embedding, which MGM doesn't read
        r"visual\.trunk\.(norm_pre|head)\..+|visual\.head\..+"
        # the text side, in the older and the newer form
        r"|(text|transformer|token_embedding|ln_final)\..+|positional_embedding|text_projection|attn_mask"
        r"|logit_scale|logit_bias"
    ),
)


def _places_of(name: str, shape: Sequence[int]) -> Iterator[tuple[str, Place]]:
    found = _EXPERTS.fullmatch(name)
    if found is None:
        yield to_published(name), Place(name)
        return
    layer, kind = found.groups()
    for expert in range(shape[0]):
        prefix = f"{to_published(layer)}.block_sparse_moe.experts.{expert}"
        if kind == "down_proj":
            yield f"{prefix}.w2.weight", Place(name, (expert,))
        else:
            half = shape[1] // 2
            yield f"{prefix}.w1.weight", Place(name, (expert, slice(None, half)))
            yield f"{prefix}.w3.weight", Place(name, (expert, slice(half, None)))
