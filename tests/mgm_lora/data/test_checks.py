from typing import Any

import pandas as pd
import pytest

from mgm_lora.data.checks import Check, Consequence, checks_for
from mgm_lora.errors import SettingsError


def test_names_and_columns_are_told_apart(dataset: Any) -> None:
    checks = checks_for(dataset.settings(), validation=dataset.rules())
    assert len({check.name for check in checks}) == len(checks)
    assert len({check.column for check in checks}) == len(checks)


def test_warn_only_changes_the_consequence_of_what_it_names(dataset: Any) -> None:
    checks = checks_for(dataset.settings(), validation=dataset.rules(warn_only=("duplicate_id", "too_many_tokens")))
    warning = [check.name for check in checks if check.consequence is Consequence.WARN]
    assert warning == ["duplicate_id", "too_many_tokens"]


def test_an_unknown_name_is_answered_with_the_known_ones(dataset: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        checks_for(dataset.settings(), validation=dataset.rules(warn_only=("blank_pictures", "low_label_share")))
    message = str(caught.value)
    assert "validation.warn_only: no check is called blank_pictures" in message
    assert "blank_picture, duplicate_picture, leaked_picture" in message


@pytest.mark.parametrize("name", ["broken_picture", "missing_picture", "wrong_roles", "leaked_picture"])
def test_what_no_model_can_learn_from_cannot_be_kept(dataset: Any, name: str) -> None:
    with pytest.raises(SettingsError, match=f"what fails {name} can't be kept.*Can be kept: duplicate_id, "):
        checks_for(dataset.settings(), validation=dataset.rules(warn_only=(name,)))


def test_bounds_are_themselves_allowed_and_nothing_is_said_of_none() -> None:
    check = Check(name="n", sentence="", column="n", low=2, high=4)
    table = pd.DataFrame({"n": pd.array([1, 2, 4, 5, None], dtype="Int64")})
    assert list(check.failing(table)) == [True, False, False, True, False]


def test_a_finding_fails_unless_it_is_no_or_none() -> None:
    check = Check(name="n", sentence="", column="n")
    assert list(check.failing(pd.DataFrame({"n": ["no", "torn", None]}))) == [False, True, False]
    assert not check.failing(pd.DataFrame({"n": [None, None]})).any()
