import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from recipes.looks import COLOURS, main_colour, name_colours, outline


@pytest.mark.parametrize(
    "css, name",
    [
        # easy-VQA's own eight, by the names that its authors give them
        ("#0000ff", "blue"), ("#00ff00", "green"), ("#ff0000", "red"), ("#808080", "gray"),
        ("#008080", "teal"), ("#000000", "black"), ("#ffff00", "yellow"), ("#a52a2a", "brown"),
        ("#ffffff", "white"), ("#f4900c", "orange"), ("#9266cc", "purple"), ("#f4abba", "pink"), ("#662113", "brown"),
    ],
)  # fmt: skip
def test_colours_have_the_names_that_people_give_them(css: str, name: str) -> None:
    pixel = np.array([ImageColor.getrgb(css)], dtype=np.uint8)
    assert name_colours(pixel).tolist() == [name]


def test_every_colour_has_one_of_the_basic_names() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 3), dtype=np.uint8)
    assert set(name_colours(pixels).tolist()) == set(COLOURS)


def test_main_colour_needs_a_clear_majority_of_the_opaque_pixels() -> None:
    picture = _clear()
    ImageDraw.Draw(picture).rectangle((0, 0, 63, 19), fill="red")
    assert main_colour(picture) == "red"
    ImageDraw.Draw(picture).rectangle((0, 20, 63, 39), fill="blue")
    assert main_colour(picture) is None


@pytest.mark.parametrize("angle", [0, 180])
def test_outlines_are_found(angle: int) -> None:
    circle, rectangle, triangle = _clear(), _clear(), _clear()
    ImageDraw.Draw(circle).ellipse((8, 10, 40, 42), fill="red")
    ImageDraw.Draw(rectangle).rectangle((8, 10, 60, 30), fill="red")
    ImageDraw.Draw(triangle).polygon([(30, 10), (10, 50), (50, 50)], fill="red")
    found = [outline(picture.rotate(angle)) for picture in (circle, rectangle, triangle)]
    assert found == ["circle", "rectangle", "triangle"]


def test_a_cross_has_no_named_outline() -> None:
    picture = _clear()
    ImageDraw.Draw(picture).rectangle((24, 4, 40, 60), fill="red")
    ImageDraw.Draw(picture).rectangle((4, 24, 60, 40), fill="red")
    assert outline(picture) is None


def _clear() -> Image.Image:
    return Image.new("RGBA", (64, 64), (255, 255, 255, 0))
