"""A worker's worktree over real git repositories: it is at the commit that is asked for, or says why not."""

import os

import pytest
from dvc.config import Config
from filelock import FileLock, Timeout

from mgm_lora.errors import WorkplaceError
from tasks.child import reproduce
from tasks.workplace import FOLDER, workplace

from ..two_machines import Team, make_team


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    return make_team(tmp_path_factory.mktemp("team"))


def publish(team: Team, **files: str) -> str:
    """A new commit with files by their names."""
    for name, text in files.items():
        (team.desk.clone / name).write_text(text)
    return team.publish("Go on")


def state_of_clone(team: Team) -> list[str]:
    return [team.box.run("git", *command).stdout for command in (("status", "--porcelain"), ("rev-parse", "HEAD"))]


def test_it_is_at_the_commit_that_is_asked_for_newer_or_older_than_the_clone(team: Team) -> None:
    older = publish(team, code="older")
    newer = publish(team, code="newer", later="")
    before = state_of_clone(team)

    with workplace(team.box.clone, commit=newer) as folder:
        assert (folder / "code").read_text() == "newer"
    with workplace(team.box.clone, commit=older) as folder:
        assert (folder / "code").read_text() == "older"
        assert not (folder / "later").exists()
    assert state_of_clone(team) == before


def test_what_runs_left_is_removed_but_for_what_git_ignores(team: Team) -> None:
    head = publish(team, code="as committed")
    with workplace(team.box.clone, commit=head) as folder:
        (folder / "code").write_text("changed")
        (folder / "left").touch()
        (folder / "build").mkdir()
        (folder / "build" / "checkpoint").touch()
    with workplace(team.box.clone, commit=head) as folder:
        assert (folder / "code").read_text() == "as committed"
        assert not (folder / "left").exists()
        assert (folder / "build" / "checkpoint").exists()


def test_commit_that_nobody_pushed_is_told(team: Team) -> None:
    (team.desk.clone / "code").write_text("mine alone")
    team.desk.commit("Keep it")
    head = team.desk.run("git", "rev-parse", "HEAD").stdout.strip()

    with (
        pytest.raises(WorkplaceError, match=rf"commit {head} isn't on the git remote.*`git push`"),
        workplace(team.box.clone, commit=head),
    ):
        pass


def test_environment_of_another_commit_is_told(team: Team) -> None:
    with_it = publish(team, **{"requirements.lock": "torch==2\n"})
    assert team.box.run("git", "pull", "--quiet").returncode == 0
    other = publish(team, **{"requirements.lock": "torch==3\n"})

    with workplace(team.box.clone, commit=with_it):
        pass
    with pytest.raises(WorkplaceError, match="wants other packages"), workplace(team.box.clone, commit=other):
        pass
    assert team.box.run("git", "pull", "--quiet").returncode == 0
    with workplace(team.box.clone, commit=other):
        pass


def test_remotes_are_those_of_the_clone_from_where_it_lies(team: Team) -> None:
    head = publish(team, code="with remotes")
    config = team.box.clone / ".dvc" / "config.local"
    config.write_text(
        "[core]\n    remote = own\n['remote \"own\"']\n    url = ../../own-remote\n"
        "['remote \"far\"']\n    url = ssh://far/remote\n    password = secret\n"
    )
    try:
        with workplace(team.box.clone, commit=head) as folder:
            found = Config(str(folder / ".dvc"))
    finally:
        config.unlink()

    assert found["core"]["remote"] == "own"
    assert found["remote"]["own"]["url"] == str(team.box.folder / "own-remote")
    assert found["remote"]["far"]["password"] == "secret"
    assert found["remote"]["team"]["url"] == str(team.remote)


def test_it_is_made_anew_where_somebody_removed_it_and_one_at_a_time_has_it(team: Team) -> None:
    head = publish(team, code="again")
    with workplace(team.box.clone, commit=head) as folder:
        moved = folder.rename(folder.with_name("removed"))
    with workplace(team.box.clone, commit=head) as folder:
        assert (folder / "code").read_text() == "again"
        with pytest.raises(Timeout):
            FileLock(team.box.clone / FOLDER.with_suffix(".lock")).acquire(timeout=0)
    assert moved.is_dir()


def test_locks_of_dead_processes_hold_nothing_up(team: Team) -> None:
    """Of git, and of DVC: also where another process has got the dead one's number since, here this one."""
    head = publish(team, code="locked")
    assert team.desk.run("dvc", "push", "--quiet").returncode == 0
    with workplace(team.box.clone, commit=head) as folder:
        temporary = folder / ".dvc" / "tmp"
        assert team.box.run("dvc", "pull", "--quiet", "source.txt").returncode == 0
    (team.box.clone / ".git" / "worktrees" / "card" / "index.lock").touch()
    temporary.mkdir()
    (temporary / "lock").write_text(" 4194303\n")
    holder = f'{{"pid": {os.getpid()}, "cmd": "dvc repro"}}'
    (temporary / "rwlock").write_text(f'{{"write": {{"{folder / "prepared.txt"}": {holder}}}, "read": {{}}}}')

    with workplace(team.box.clone, commit=head) as folder:
        (folder / "source.txt").write_text("source")
        assert reproduce("prepare", root=folder, force=False, pull=False, on_line=print).exit_code == 0
