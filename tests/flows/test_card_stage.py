"""The worker's flow for one stage, run here without a worker: what it needs and makes goes by a real remote, whatever befalls that."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.card_stage import card_stage
from tasks.child import push
from tasks.delivery import find_delivery
from tasks.order import Order, make_order

from ..small_disk import Disk, needs_mount, small_disk
from ..two_machines import Team, make_team

STAGE = "train@lora"
Fulfil = Callable[[Order], State[Any]]


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Disk]]:
    """For the remote and for the box; empty where nothing can be mounted."""
    folder = tmp_path_factory.mktemp("disks")
    with ExitStack() as stack:
        can_mount = not needs_mount.args[0]
        names = ("remote", "box") if can_mount else ()
        yield {name: stack.enter_context(small_disk(folder / name, kib=16384)) for name in names}


@pytest.fixture(scope="module")
def team(disks: dict[str, Disk], tmp_path_factory: pytest.TempPathFactory) -> Team:
    """What the stage needs has been made at the desk and given to the remote."""
    folder = tmp_path_factory.mktemp("team")
    if disks:
        (folder / "box").symlink_to(disks["box"].folder)
    team = make_team(folder, url=str(disks["remote"].folder) if disks else None)
    assert team.desk.run("dvc", "repro", "--quiet", "prepare").returncode == 0
    push(["prepare"], root=team.desk.clone, on_line=print)
    team.publish("Prepare")
    return team


@pytest.fixture
def fulfil(team: Team, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Fulfil:
    """Runs the flow as the box would."""
    monkeypatch.setenv("HOME", str(team.box.home))
    monkeypatch.chdir(team.box.clone)
    return lambda order: card_stage(order, return_state=True)


def order(team: Team, *, lora: int, force: bool = False) -> Order:
    (team.desk.clone / "params.yaml").write_text(f"lora: {lora}\nfull: 1\n")
    return make_order(STAGE, root=team.desk.clone, force=force)


def runs_of(team: Team) -> int:
    return len(team.box.has_run())


def test_stage_is_run_given_and_not_run_again(team: Team, fulfil: Fulfil) -> None:
    sent = order(team, lora=1)

    first, again = fulfil(sent), fulfil(sent)

    assert (first.name, again.name) == ("Completed", "Cached")
    assert runs_of(team) == 1
    found = find_delivery(sent.key, root=team.desk.clone)
    assert found
    assert found.files == {"lora.json": '{"score": "1"}'}
    assert found.run == str(again.state_details.flow_run_id)
    assert fulfil(order(team, lora=1, force=True)).name == "Completed"
    assert runs_of(team) == 2


def test_failure_of_the_stage_says_its_last_words(team: Team, fulfil: Fulfil) -> None:
    (team.box.home / "size").write_text("no number")
    sent = order(team, lora=2)
    try:
        failed = fulfil(sent)
    finally:
        (team.box.home / "size").unlink()

    assert failed.is_failed()
    assert "stage 'train@lora' failed with exit code" in str(failed.message)
    assert "invalid literal for int()" in str(failed.message)
    assert find_delivery(sent.key, root=team.desk.clone) is None


def test_commit_that_the_box_cannot_have_is_told_before_anything_runs(team: Team, fulfil: Fulfil) -> None:
    before = runs_of(team)
    failed = fulfil(order(team, lora=3).model_copy(update={"commit": "0" * 40}))

    assert failed.is_failed()
    assert "isn't on the git remote" in str(failed.message)
    assert runs_of(team) == before


def test_older_commit_is_run_as_it_was(team: Team, fulfil: Fulfil) -> None:
    older = order(team, lora=4)
    (team.desk.clone / "stage.py").write_text("raise SystemExit('newer')")
    team.publish("Break it")
    newer = order(team, lora=4)

    assert fulfil(newer).is_failed()
    assert fulfil(older).name == "Completed"
    assert team.desk.run("git", "checkout", older.commit, "stage.py").returncode == 0
    team.publish("Mend it")


@needs_mount
@pytest.mark.parametrize("trouble, lora", [("full", 5), ("read_only", 6)])
def test_remote_that_takes_nothing_costs_no_second_run(
    team: Team, disks: dict[str, Disk], fulfil: Fulfil, trouble: str, lora: int
) -> None:
    before = runs_of(team)
    (team.box.home / "size").write_text("20000")
    sent = order(team, lora=lora)

    with getattr(disks["remote"], trouble)():
        failed = fulfil(sent)
    assert failed.is_failed()
    assert "has been run, and lies in the cache of this worker" in str(failed.message)
    assert find_delivery(sent.key, root=team.desk.clone) is None

    assert fulfil(sent).name == "Cached"
    assert find_delivery(sent.key, root=team.desk.clone)
    assert runs_of(team) == before + 1


def test_input_that_the_remote_lacks_is_told_before_anything_runs(team: Team, fulfil: Fulfil) -> None:
    (team.desk.home / "size").write_text("1")  # nobody pushes what is made now
    assert team.desk.run("dvc", "repro", "--quiet", "--force", "prepare").returncode == 0
    before = runs_of(team)

    failed = fulfil(order(team, lora=7))

    assert failed.is_failed()
    assert "`dvc pull --force prepare` failed" in str(failed.message)
    assert runs_of(team) == before


@needs_mount
def test_full_disk_of_the_box_is_told_and_the_next_run_goes_well(
    team: Team, disks: dict[str, Disk], fulfil: Fulfil
) -> None:
    push(["prepare"], root=team.desk.clone, on_line=print)
    (team.box.home / "size").write_text("4000000")
    sent = order(team, lora=8)

    with disks["box"].nearly_full(kib=2000):
        failed = fulfil(sent)
    assert failed.is_failed()
    assert "No space left on device" in str(failed.message)

    assert fulfil(sent).name == "Completed"
    assert find_delivery(sent.key, root=team.desk.clone)
