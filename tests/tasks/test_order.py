"""Orders made in one clone and looked at in another, with real git and DVC in between."""

from pathlib import Path

import pytest

from mgm_lora.errors import OrderError
from tasks.child import pull, push
from tasks.order import Order, check_inputs, make_order, write_files

from ..two_machines import Team, make_team

STAGE = "train@lora"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """What the stage needs has been made at the desk and given to the remote."""
    team = make_team(tmp_path_factory.mktemp("team"))
    assert team.desk.run("dvc", "repro", "--quiet", "prepare").returncode == 0
    push(["prepare"], root=team.desk.clone, on_line=print)
    return team


@pytest.fixture
def team(prepared: Team, tmp_path: Path) -> Team:
    """Copies of both machines, to be changed."""
    return prepared.copied_to(tmp_path)


def order(team: Team, *, stage: str = STAGE) -> Order:
    return make_order(stage, root=team.desk.clone, force=False)


def arrive(order: Order, team: Team) -> Path:
    """The box's clone, as the worker makes it for an order."""
    write_files(order, root=team.box.clone)
    pull(order.needs, root=team.box.clone, on_line=print)
    return team.box.clone


def test_box_finds_what_the_desk_found(team: Team) -> None:
    sent = order(team)
    check_inputs(sent, root=arrive(sent, team))

    assert sent.needs == ("prepare",)
    assert sorted(sent.files) == ["dvc.lock", "params.yaml", "prepare.json"]
    assert "full" not in sent.files["dvc.lock"]
    assert sent.commit == team.desk.run("git", "rev-parse", "HEAD").stdout.strip()


def test_settings_that_nobody_committed_go_along(team: Team) -> None:
    (team.desk.clone / "params.yaml").write_text("lora: 7\nfull: 1\n")
    sent = order(team)
    check_inputs(sent, root=arrive(sent, team))

    assert (team.box.clone / "params.yaml").read_text() == "lora: 7\nfull: 1\n"


def test_data_that_nobody_committed_goes_along(team: Team) -> None:
    (team.desk.clone / "source.txt").write_text("new")
    assert team.desk.run("dvc", "add", "source.txt").returncode == 0
    push(["source.txt.dvc"], root=team.desk.clone, on_line=print)
    sent = order(team, stage="prepare")
    check_inputs(sent, root=arrive(sent, team))

    assert (team.box.clone / "source.txt").read_text() == "new"


@pytest.mark.parametrize(
    "file, change, told",
    [
        ("stage.py", ("import json", "import  json"), "stage.py differ"),
        ("dvc.yaml", ("${item.arm}.txt\n", "${item.arm}.txt && true\n"), "its command differ"),
        ("dvc.yaml", ('["${item.arm}"]', '["${item.arm}", full]'), "full in params.yaml differ"),
    ],
)
def test_code_that_nobody_committed_is_told_by_name(team: Team, file: str, change: tuple[str, str], told: str) -> None:
    path = team.desk.clone / file
    path.write_text(path.read_text().replace(*change))
    sent = order(team)

    with pytest.raises(OrderError, match=rf"'train@lora' at commit {sent.commit[:10]}.*: {told}. Commit and push"):
        check_inputs(sent, root=arrive(sent, team))


def test_input_that_did_not_arrive_is_told(team: Team) -> None:
    sent = order(team)
    write_files(sent, root=team.box.clone)

    with pytest.raises(OrderError, match=r"prepared\.txt differ"):
        check_inputs(sent, root=team.box.clone)


def test_key_is_that_of_the_inputs_and_of_nothing_else(team: Team) -> None:
    first = order(team)
    (team.desk.clone / "params.yaml").write_text("# said otherwise\nlora: 1\nfull: 5\n")
    team.desk.commit("Say it otherwise")
    same = order(team)
    (team.desk.clone / "params.yaml").write_text("lora: 2\nfull: 5\n")

    assert same.key == first.key
    assert same.commit != first.commit
    assert order(team).key != first.key
    assert order(team, stage="train@full").key != first.key


@pytest.mark.parametrize("path", ["../outside.txt", "/tmp/outside.txt", ".git/hooks/post-checkout"])
def test_file_outside_of_the_repository_is_refused(tmp_path: Path, path: str) -> None:
    bad = Order(stage=STAGE, commit="0" * 40, inputs={}, files={path: "text"}, needs=())

    with pytest.raises(OrderError, match="outside of the repository"):
        write_files(bad, root=tmp_path / "clone")
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("content, told", [(b"\xff\xfe\x00", "is no text"), (b"x" * 500_000, "500,")])
def test_git_tracked_output_that_cannot_go_along_is_told(team: Team, content: bytes, told: str) -> None:
    (team.desk.clone / "prepare.json").write_bytes(content)

    with pytest.raises(OrderError, match=rf"(?s)prepare\.json.*{told}|{told}.*prepare\.json"):
        order(team)


def test_without_a_commit_there_is_no_order(project: Path) -> None:
    with pytest.raises(OrderError, match="takes the code from a commit"):
        make_order("check", root=project, force=False)
