"""Deliveries that one clone leaves in a real DVC remote and another takes."""

import shutil
from pathlib import Path

import pytest

from mgm_lora.errors import RemoteError
from tasks.child import pull, push
from tasks.dag import is_unchanged
from tasks.delivery import accept_, find_delivery, leave_delivery

from ..two_machines import Team, make_team

STAGE, KEY = "train@lora", "ab" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """The desk has prepared; the box, which got the same, has trained, pushed, and left the delivery."""
    team = make_team(tmp_path_factory.mktemp("team"))
    for machine, stages in ((team.desk, ["prepare"]), (team.box, ["prepare", STAGE])):
        for command in (["dvc", "pull", "--quiet", "source.txt"], ["dvc", "repro", "--quiet", *stages]):
            machine.run(*command)
        if machine is team.desk:
            push(["source.txt.dvc", "prepare"], root=machine.clone, on_line=print)
    push([STAGE], root=team.box.clone, on_line=print)
    leave_delivery(STAGE, root=team.box.clone, key=KEY, run="run 1")
    return team


@pytest.fixture
def desk(made: Team, tmp_path: Path) -> Path:
    """A copy of the desk's clone, to be changed."""
    return Path(shutil.copytree(made.desk.clone, tmp_path / "desk", symlinks=True))


def test_delivery_and_pull_bring_all_that_the_stage_made(desk: Path, made: Team) -> None:
    found = find_delivery(KEY, root=desk)
    assert found
    accept_(found, root=desk)
    pull([STAGE], root=desk, on_line=print)

    assert is_unchanged(STAGE, root=desk)
    assert is_unchanged("prepare", root=desk)  # its entry stayed
    assert found.run == "run 1"
    for name in ("lora.txt", "lora.json"):
        assert (desk / name).read_text() == (made.box.clone / name).read_text()


def test_nothing_is_found_under_another_key(desk: Path) -> None:
    assert find_delivery("cd" * 32, root=desk) is None


def test_something_else_under_the_key_is_told(desk: Path, made: Team) -> None:
    path = made.remote / "mgm-lora" / "stages" / "ef" / f"{'ef' * 32}.json"
    path.parent.mkdir()
    path.write_text("{}")

    with pytest.raises(RemoteError, match=rf"{path} is no delivery"):
        find_delivery("ef" * 32, root=desk)


def test_delivery_with_files_that_the_stage_does_not_make_is_refused(desk: Path) -> None:
    found = find_delivery(KEY, root=desk)
    assert found
    meddled = found.model_copy(update={"files": {**found.files, "stage.py": "print()"}})

    with pytest.raises(RemoteError, match=r"brings \['lora.json', 'stage.py'\]"):
        accept_(meddled, root=desk)
    assert "die_with_parent" in (desk / "stage.py").read_text()


def test_remote_that_is_cleaned_of_the_outputs_is_told_at_the_pull(desk: Path, made: Team, tmp_path: Path) -> None:
    found = find_delivery(KEY, root=desk)
    assert found
    accept_(found, root=desk)
    (tmp_path / "empty").mkdir()
    config = desk / ".dvc" / "config"
    config.write_text(config.read_text().replace(str(made.remote), str(tmp_path / "empty")))

    with pytest.raises(RemoteError, match="`dvc pull --force train@lora` failed"):
        pull([STAGE], root=desk, on_line=print)
