from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgm_lora.data.llava import Turn
from mgm_lora.data.table import Sample, read_samples, write_samples
from mgm_lora.errors import ArtifactError

WITH_PICTURE = Sample(
    id="7",
    pictures=("a/ü.png",),
    turns=(Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat."), Turn("human", "Sure?"), Turn("gpt", "Yes \N{CAT}")),
    question_type="shape",
    picture_sha256=("0" * 64,),
    width=24,
    height=16,
    num_tokens=40,
    num_labels=9,
)
TEXT_ONLY = Sample(
    id="8",
    pictures=(),
    turns=(Turn("human", "What?"), Turn("gpt", "This.")),
    question_type="",
    picture_sha256=(),
    width=None,
    height=None,
    num_tokens=8,
    num_labels=3,
)


@pytest.mark.parametrize("samples", [[WITH_PICTURE, TEXT_ONLY], [TEXT_ONLY], []])
def test_what_is_written_is_read_again(tmp_path: Path, samples: list[Sample]) -> None:
    write_samples(samples, path=tmp_path / "train.parquet")
    assert read_samples(tmp_path / "train.parquet") == samples


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_samples([WITH_PICTURE, TEXT_ONLY], path=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_question_and_answer() -> None:
    assert WITH_PICTURE.answer == "Yes \N{CAT}"
    assert WITH_PICTURE.question == WITH_PICTURE.turns[:3]


def test_a_missing_table_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="dvc repro validate"):
        read_samples(tmp_path / "train.parquet")


def test_half_a_table_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_samples([WITH_PICTURE], path=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="can't be read as Parquet"):
        read_samples(path)


def test_other_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(ArtifactError, match=r"num_tokens.*name: (large_)?string"):
        read_samples(tmp_path / "train.parquet")
