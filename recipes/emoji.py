"""What the base knows: pictures of emoji in three vendors' styles, what they are called and what they look like.

Trained on: Noto (shaded) and Twemoji (flat) pictures of four fifths of the things. Held out: all of Fluent's style,
and a fifth of the things in every style. Fluent is the one held out since the other two show a base both a shaded and a
flat hand, and since it lacks some things; so what is measured is whether the base knows the thing and not only its
pictures. It doesn't know how the base is trained.
"""

import json
import random
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image

from recipes.conversations import on_white, pixels_key

Style = Literal["noto", "twemoji", "fluent"]
TRAINING_STYLES: tuple[Style, ...] = ("noto", "twemoji")
HELDOUT_STYLE: Style = "fluent"
SIDE = 64

GROUPS = {
    "Smileys & Emotion": "smiley",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}
# countries' flags would be a sixth of everything and are told apart by what 64 pixels hardly show; families look alike
_LEFT_OUT_SUBGROUPS = {"country-flag", "subdivision-flag", "family"}
_LEADING_WORDS = {"animal", "person", "plant", "face", "hand", "food", "place", "transport"}
_NAME = re.compile(r"[a-z]+( [a-z]+){0,2}")
_PLAIN_SHARE = 0.3


@dataclass(frozen=True)
class Thing:
    """What an emoji stands for, in any style."""

    code: str
    """Unicode code points in lower-case hexadecimal, joined by hyphens."""
    name: str | None
    """One to three lower-case words, or None where the published short name is longer or has digits."""
    group: str
    subgroup: str


@dataclass(frozen=True)
class EmojiPicture:
    """A thing in one style: RGBA, 64 x 64, what is transparent in white."""

    thing: Thing
    style: Style
    cutout: Image.Image

    @property
    def file_name(self) -> str:
        """Unique among all things and styles."""
        return f"{self.style}-{self.thing.code}.png"


def augment(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The cut-out at a random size (a quarter to full) and place on a random light background; RGB, size unchanged.

    Three in ten stay whole on white, as the held-out pictures are. No mirroring: arrows and hands have a side.
    """
    if rng.random() < _PLAIN_SHARE:
        return on_white(picture)
    width, height = picture.size
    scale = rng.uniform(0.25, 1.0)
    small = picture.convert("RGBA").resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    background = tuple(rng.randint(224, 255) for _ in range(3))
    canvas = Image.new("RGBA", picture.size, background)
    place = rng.randint(0, width - small.width), rng.randint(0, height - small.height)
    canvas.alpha_composite(small, place)
    return canvas.convert("RGB")


def read_things(emoji_datasource: Path) -> list[Thing]:
    """The things of an unpacked emoji-datasource package, by code.

    Left out: parts (skin tones, hair), countries' and regions' flags, families, and the man's, woman's and facing-right
    forms of a person, which look so much like the person that a held-out thing would not be new.
    """
    rows = json.loads((emoji_datasource / "emoji.json").read_text(encoding="utf-8"))
    return sorted((_to_thing(row) for row in rows if _is_kept(row)), key=lambda thing: thing.code)


def split_things(things: list[Thing], *, heldout_share: float, seed: int) -> tuple[list[Thing], list[Thing]]:
    """Training things and held-out things; all styles of a thing are on one side."""
    shuffled = random.Random(seed).sample(things, len(things))
    cut = round(len(things) * heldout_share)
    return shuffled[cut:], shuffled[:cut]


def read_vendor_pictures(emoji_datasource: Path, things: list[Thing], *, style: Style) -> list[EmojiPicture]:
    """The pictures that an emoji-datasource package has of the things."""
    vendor = {"noto": "google", "twemoji": "twitter"}[style]
    folder = emoji_datasource / "img" / vendor / "64"
    found = ((thing, folder / f"{thing.code}.png") for thing in things)
    return [EmojiPicture(thing, style, _whiten(Image.open(path))) for thing, path in found if path.exists()]


def draw_fluent_pictures(iconify: Path, things: list[Thing]) -> list[EmojiPicture]:
    """The pictures that the Fluent flat set has of the things, drawn from its SVG."""
    icons = json.loads((iconify / "icons.json").read_text(encoding="utf-8"))
    names = json.loads((iconify / "chars.json").read_text(encoding="utf-8"))
    view = f'viewBox="0 0 {icons["width"]} {icons["height"]}"'
    pictures = []
    for thing in things:
        name = names.get(thing.code, names.get(thing.code.replace("-fe0f", "")))
        if name in icons["icons"]:
            body = icons["icons"][name]["body"]
            drawn = _draw_svg(f'<svg xmlns="http://www.w3.org/2000/svg" {view}>{body}</svg>')
            pictures.append(EmojiPicture(thing, "fluent", drawn))
    return pictures


def drop_repeated(pictures: list[EmojiPicture], *, seen: set[bytes]) -> list[EmojiPicture]:
    """The pictures that look like none before them and none in `seen`. Adds theirs to `seen`, in place."""
    kept = []
    for picture in pictures:
        key = pixels_key(picture.cutout)
        if key not in seen:
            seen.add(key)
            kept.append(picture)
    return kept


def _is_kept(row: dict[str, str]) -> bool:
    codes = row["unified"].split("-")
    if row["category"] not in GROUPS or row["subcategory"] in _LEFT_OUT_SUBGROUPS:
        return False
    is_gendered = "200D" in codes and (codes[0] in ("1F468", "1F469") or "2640" in codes or "2642" in codes)
    return not is_gendered and not row["short_name"].endswith("_facing_right")


def _to_thing(row: dict[str, str]) -> Thing:
    name = re.sub(r"[-_]+", " ", row["short_name"])
    return Thing(
        code=row["unified"].lower(),
        name=name if _NAME.fullmatch(name) else None,
        group=GROUPS[row["category"]],
        subgroup=_simplify(row["subcategory"]),
    )


def _simplify(subcategory: str) -> str:
    """face-concerned -> concerned face, animal-bird -> bird, plant-other -> other plant, light & video -> and."""
    first, *rest = subcategory.replace("&", "and").split("-")
    if not rest or first not in _LEADING_WORDS:
        return " ".join([first, *rest])
    if first in ("animal", "person", "plant") and rest != ["other"]:
        return " ".join(rest)
    return " ".join([*rest, first])


def _whiten(picture: Image.Image) -> Image.Image:
    """RGBA of the one size, what is fully transparent in white: a reader that drops alpha sees a white background."""
    rgba = picture.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    whitened = Image.new("RGBA", rgba.size, (255, 255, 255, 0))
    whitened.paste(rgba, mask=rgba.getchannel("A").point(lambda alpha: 255 if alpha else 0))
    return whitened


def _draw_svg(svg: str) -> Image.Image:
    import resvg_py  # only this recipe's optional group has it

    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    return _whiten(Image.open(BytesIO(drawn)))
