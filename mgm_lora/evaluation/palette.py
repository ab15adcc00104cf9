"""A colour for every arm, for light and for dark pages: the known ones have their own, the others take theirs in order."""

from collections.abc import Sequence

Colour = tuple[str, str]
"""On a light page, and on a dark one."""
_KNOWN: dict[str, Colour] = {
    "base": ("#70747c", "#a2a8b2"),
    "lora": ("#1463c9", "#6fb0ff"),
    "merged": ("#0b7f74", "#45c9bb"),
    "full": ("#b9500f", "#ff9d5c"),
}
_OTHERS: tuple[Colour, ...] = (
    ("#7b3fc4", "#b994ff"),
    ("#a8216f", "#ff86c4"),
    ("#3b7d1e", "#8fd46a"),
    ("#77701a", "#d3c94c"),
    ("#0a7a94", "#56cbe8"),
    ("#8a4b2a", "#dba076"),
    ("#3d4bc7", "#95a3ff"),
    ("#b3261e", "#ff8f85"),
    ("#4a6072", "#9fb8cc"),
    ("#8c1d52", "#ef9ab5"),
)


def colours(arms: Sequence[str]) -> dict[str, Colour]:
    """By arm; after ten others the colours begin anew."""
    others = [name for name in arms if name not in _KNOWN]
    return {name: _KNOWN.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in arms}
