"""The names of the weights: published key <-> name in our module tree. All mapping is in this file.

transformers 5 drops CLIP's `vision_model` level and the tower's own `vision_tower` level is ours to drop; the language
model keeps its head inside. It doesn't know files.
"""

_PUBLISHED_TO_OURS = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower_aux.", "vision_tower_aux."),
    ("model.mm_projector.", "mm_projector."),
    ("model.vlm_uni_", "vlm_uni_"),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def to_ours(published: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` to `language_model.model.layers.0.mlp.up_proj.weight`; an unknown key stays as it is."""
    for theirs, ours in _PUBLISHED_TO_OURS:
        if published.startswith(theirs):
            return ours + published.removeprefix(theirs)
    return published


def to_published(ours: str) -> str:
    """The inverse of `to_ours`."""
    for theirs, name in _PUBLISHED_TO_OURS:
        if ours.startswith(name):
            return theirs + ours.removeprefix(name)
    return ours
