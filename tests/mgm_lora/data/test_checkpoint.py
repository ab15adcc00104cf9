from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.data.checkpoint import run_checkpoint
from mgm_lora.data.judgement import summarise


def test_a_page_that_cannot_be_written_is_an_error_not_a_line_in_the_log(dataset: Any, tmp_path: Path) -> None:
    tables, checks = dataset.tables()
    summary = summarise(tables, checks=checks, num_pictures=9)
    site = tmp_path / "site"
    site.mkdir()
    (site / "validations").write_text("where the pages' folder should be")
    with pytest.raises(OSError, match="validations"):
        run_checkpoint(tables, checks=checks, summary=summary, site=site)


def test_great_expectations_and_we_must_agree(dataset: Any, tmp_path: Path) -> None:
    tables, checks = dataset.tables()
    summary = summarise(tables, checks=checks, num_pictures=9)
    train = summary.files["train"]
    wrong = replace(train, rejects={**train.rejects, "blank_picture": 1})
    summary = replace(summary, files={**summary.files, "train": wrong})
    with pytest.raises(AssertionError, match="blank_picture: 0 or 1 failing rows"):
        run_checkpoint(tables, checks=checks, summary=summary, site=tmp_path / "site")
