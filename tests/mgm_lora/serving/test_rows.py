"""From rows to questions: all of them checked, each told by its number."""

import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mgm_lora.errors import RefusedError
from mgm_lora.model.answering import Question
from mgm_lora.model.base import find_base
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.serving.limits import ServingLimits
from mgm_lora.serving.rows import Row, make_questions, read_rows, tokens_to_make
from mgm_lora.settings import BaseSettings

LIMITS = ServingLimits(max_rows=3, max_new_tokens=20)


@pytest.fixture(scope="module")
def processor(tiny_base: Path) -> MGMProcessor:
    return find_base(BaseSettings(model=str(tiny_base), dtype="float32")).processor()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("empty", [None, "", float("nan"), pd.NA])
def test_question_without_a_picture_has_no_picture_mark(empty: object, processor: MGMProcessor, tmp_path: Path) -> None:
    rows = read_rows(pd.DataFrame({"picture": [empty], "question": ["Why?"]}), limits=LIMITS)
    questions = make_questions(rows, processor=processor, limits=LIMITS, folder=tmp_path)
    assert questions == [Question(turns=(("human", "Why?"),), pictures=())]


def test_table_without_pictures_is_of_questions_alone() -> None:
    assert read_rows(pd.DataFrame({"question": ["Why?"]}), limits=LIMITS) == [Row("Why?", None)]


def test_picture_comes_first_where_the_question_does_not_say(processor: MGMProcessor, tmp_path: Path) -> None:
    rows = [Row("Why?", png()), Row("What is <image>?", png())]
    first, second = make_questions(rows, processor=processor, limits=LIMITS, folder=tmp_path)
    assert first.turns == (("human", "<image>\nWhy?"),)
    assert second.turns == (("human", "What is <image>?"),)
    assert [path.is_file() for question in (first, second) for path in question.pictures] == [True, True]


@pytest.mark.parametrize("picture", [17, ["a.png"], {"url": "a.png"}, "data:image/png;base64,%%%"])
def test_what_is_no_picture_is_told_with_its_row(picture: object) -> None:
    rows = pd.DataFrame({"picture": [None, picture], "question": ["Why?", "What?"]})
    with pytest.raises(RefusedError, match=r"^row 1: ") as told:
        read_rows(rows, limits=LIMITS)
    assert told.value.status == 422


@pytest.mark.parametrize(
    "row, status",
    [
        (Row("", png()), 422),
        (Row("<image>?", None), 422),
        (Row("long " * 100, None), 422),
        (Row("Why?", b"no picture"), 415),
    ],
)
def test_what_cannot_be_asked_is_told_with_its_row(
    row: Row, status: int, processor: MGMProcessor, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=r"^row 1: ") as told:
        make_questions([Row("Why?", png()), row], processor=processor, limits=LIMITS, folder=tmp_path)
    assert told.value.status == status


def test_question_that_is_no_text_and_too_many_rows_are_told() -> None:
    with pytest.raises(RefusedError, match="row 0: asked for a question's text, found int"):
        read_rows(pd.DataFrame({"picture": [None], "question": [3]}), limits=LIMITS)
    with pytest.raises(RefusedError, match="4 rows, allowed are 3") as told:
        read_rows(pd.DataFrame({"question": ["Why?"] * 4}), limits=LIMITS)
    assert told.value.status == 413


def test_versions_own_length_is_held_to_the_limit_and_one_that_is_asked_for_is_refused() -> None:
    assert tokens_to_make(64, default=64, limits=LIMITS) == 20
    assert tokens_to_make(8, default=8, limits=LIMITS) == 8
    assert tokens_to_make(20, default=8, limits=LIMITS) == 20
    for number in (0, -1, 21):
        with pytest.raises(RefusedError, match="from 1 to 20") as told:
            tokens_to_make(number, default=8, limits=LIMITS)
        assert told.value.status == 422
