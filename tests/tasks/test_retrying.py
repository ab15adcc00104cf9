"""Which failures are tried again: asked of real failures, of our errors and of dvc."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from prefect.states import Failed

from mgm_lora import errors
from mgm_lora.errors import MgmLoraError
from tasks.child import reproduce
from tasks.retrying import failed, failed_stage, may_pass
from tasks.stages import run_stage

NO_RUN: Any = None  # Prefect's own objects, which the decision doesn't look at


def is_tried_again(name: str, *, root: Path, pull: bool = False) -> bool:
    ended = reproduce(name, root=root, force=False, pull=pull, on_line=lambda line: None)
    assert ended.exit_code != 0
    return may_pass(run_stage, NO_RUN, failed_stage("words", last_lines=ended.last_lines))


@pytest.mark.parametrize(
    "code, again", [(1, False), (2, False), (3, False), (4, True), (5, False), (14, False), (137, False)]
)
def test_stage_is_tried_again_by_its_own_exit_code(
    project: Path, one_stage: Callable[[str], None], code: int, again: bool
) -> None:
    one_stage(f"exit {code}")

    assert is_tried_again("only", root=project) is again


def test_stage_that_only_talks_of_exit_codes_and_locks_is_not(project: Path, one_stage: Callable[[str], None]) -> None:
    one_stage("echo 'exited with 4, Connection refused'; exit 2")

    assert not is_tried_again("only", root=project)


def test_stage_whose_inputs_are_not_there_is_not(project: Path, one_stage: Callable[[str], None]) -> None:
    one_stage("true")
    (project / "copy.py").unlink()

    assert not is_tried_again("only", root=project)


def test_remote_that_does_not_answer_is(project: Path) -> None:
    with Repo() as repo, repo.config.edit() as config:
        config["remote"]["team"] = {"url": "http://127.0.0.1:9/nobody-listens"}
        config["core"]["remote"] = "team"
    for path in sorted((project / "data").rglob("*"), reverse=True):
        path.unlink()
    (project / "data").rmdir()
    cache = project / ".dvc" / "cache"
    cache.rename(project / "elsewhere")

    assert is_tried_again("data.dvc", root=project, pull=True)


def test_our_errors_are_tried_again_where_the_machine_is_at_fault() -> None:
    ours = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, MgmLoraError)]
    ours.remove(errors.RefusedError)  # a server's answer, in which no stage ends
    again = {each.__name__ for each in ours if may_pass(run_stage, NO_RUN, failed(each("words")))}

    assert {"StoreUnreachableError", "BusyRegistryError", "RemoteError", "ServiceError", "BusyCardError"} <= again
    assert not again & {"SettingsError", "DataError", "ValidationFailedError", "MergeProofError", "DoesNotFitError"}


def test_what_is_no_error_of_ours_is_not() -> None:
    assert not may_pass(run_stage, NO_RUN, Failed(message="a bug", data=ZeroDivisionError()))
