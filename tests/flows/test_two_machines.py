"""A pipeline on a machine without a card, and a worker with the card on another.

All of it really runs: Prefect's server, a worker, two clones that share nothing but the two remotes and the server.
"""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelling, Crashed

from flows.pipeline import pipeline

from ..two_machines import Team, kill_all, make_team, wait_for

Worker = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def team(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Team:
    return make_team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def pool() -> str:
    return f"card-{uuid4().hex[:6]}"


@pytest.fixture(scope="module")
def workers(team: Team, pool: str) -> Iterator[list[Worker]]:
    """The box's worker, the last of the list. One that a test has killed is followed by another."""
    started = [team.box.start_worker(pool)]
    yield started
    for worker in started:
        worker.terminate()
        worker.wait(60)


@pytest.fixture(scope="module")
def ready(team: Team, workers: list[Worker]) -> None:
    wait_for(lambda: "started!" in (team.box.folder / "worker.log").read_text())


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        yield client


@pytest.fixture
def held(team: Team, pool: str, ready: None, client: SyncPrefectClient) -> Iterator[Callable[[int], "Held"]]:
    """Starts the pipeline at the desk with a setting of its own, up to where the box trains."""
    begun: list[Held] = []

    def begin(lora: int) -> Held:
        (team.desk.clone / "params.yaml").write_text(f"lora: {lora}\nfull: 1\n")
        before = len(team.box.has_run())
        hold = team.box.hold()
        begun.append(Held(team, pool, hold))
        wait_for(lambda: len(team.box.has_run()) > before)
        return begun[-1]

    yield begin
    for each in begun:
        each.hold.unlink(missing_ok=True)
        each.desk.kill()
        each.desk.wait()


class Held:
    """A pipeline at the desk whose stage on the box waits."""

    def __init__(self, team: Team, pool: str, hold: Path) -> None:
        self.hold = hold
        self.log = team.desk.folder / f"pipeline-{uuid4().hex[:6]}.log"
        self.desk = team.desk.start(
            *("python", "-m", "flows.pipeline", "--card-pool", pool, "--stage", "train@lora"), log=self.log.name
        )

    def said(self) -> str:
        return self.log.read_text()


def runs_on_box(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """The newest first."""
    name = DeploymentFilter(name=DeploymentFilterName(any_=[pool]))
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(), deployment_filter=name, sort=FlowRunSort.EXPECTED_START_TIME_DESC
    )


def newest_on_box(client: SyncPrefectClient, pool: str) -> FlowRun:
    return runs_on_box(client, pool)[0]


def test_stages_for_the_card_run_on_the_box_and_all_others_at_the_desk(
    team: Team, pool: str, ready: None, client: SyncPrefectClient
) -> None:
    done = team.desk.pipeline(pool)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 Cached, 4 Completed" in done.stdout
    assert team.desk.has_run() == ["prepare", "report"]
    assert team.box.has_run() == ["lora", "full"]
    assert (team.desk.clone / "lora.txt").read_text() == "lora 1 "
    assert (team.desk.clone / "lora.json").read_text() == '{"score": "1"}'
    assert team.desk.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert [run.name for run in runs_on_box(client, pool)] == ["train@full", "train@lora"]
    assert all(run.parent_task_run_id for run in runs_on_box(client, pool))  # a subflow of the pipeline
    assert team.box.run("git", "status", "--porcelain", "--untracked-files=no").stdout == ""


def test_run_without_changes_asks_nothing_of_the_box(
    team: Team, pool: str, ready: None, client: SyncPrefectClient
) -> None:
    before = len(runs_on_box(client, pool))
    done = team.desk.pipeline(pool)

    assert "5 Cached" in done.stdout
    assert len(runs_on_box(client, pool)) == before


def test_another_clone_takes_what_the_box_has_made(
    team: Team, pool: str, ready: None, client: SyncPrefectClient, tmp_path: Path
) -> None:
    before = len(runs_on_box(client, pool))
    (tmp_path / "colleague" / "home").mkdir(parents=True)
    assert team.desk.run("dvc", "push").returncode == 0
    colleague = team.desk.moved_to(tmp_path / "colleague")
    subprocess.run(["git", "clone", "--quiet", str(team.origin), str(colleague.clone)], check=True)
    done = colleague.pipeline(pool)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "taken from the remote" in done.stderr
    assert colleague.has_run() == ["prepare", "report"]
    assert len(runs_on_box(client, pool)) == before


def test_desk_that_is_killed_loses_nothing_and_the_next_waits_for_what_goes_on(
    team: Team, pool: str, held: Callable[[int], Held]
) -> None:
    first = held(2)
    kill_all(first.desk)
    before = team.box.has_run()
    second = Held(team, pool, first.hold)
    wait_for(lambda: "is being run already" in second.said())
    first.hold.unlink()

    assert second.desk.wait(60) == 0, second.said()
    assert team.box.has_run() == before
    assert (team.desk.clone / "lora.txt").read_text() == "lora 2 "


def test_worker_that_is_killed_with_its_flow_is_told_and_a_later_run_goes_on(
    team: Team, pool: str, held: Callable[[int], Held], client: SyncPrefectClient, workers: list[Worker]
) -> None:
    first = held(3)
    kill_all(workers[-1])
    client.set_flow_run_state(newest_on_box(client, pool).id, Crashed(message="no heartbeat"))  # as the automation does
    assert first.desk.wait(60) == 1
    assert f"the worker of the pool '{pool}', or its machine, was lost: no heartbeat" in first.said()
    first.hold.unlink()

    workers.append(team.box.start_worker(pool))
    done = team.desk.pipeline(pool)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 Cached, 2 Completed" in done.stdout  # data, prepare and full; lora and report
    assert (team.desk.clone / "lora.txt").read_text() == "lora 3 "
    assert team.box.has_run().count("full") == 1


def test_pipeline_that_is_cancelled_cancels_its_stage(
    team: Team, pool: str, held: Callable[[int], Held], client: SyncPrefectClient
) -> None:
    running = held(4)
    stage = newest_on_box(client, pool)
    assert stage.parent_task_run_id
    task = client.read_task_run(stage.parent_task_run_id)
    assert task.flow_run_id
    client.set_flow_run_state(task.flow_run_id, Cancelling())
    running.desk.send_signal(signal.SIGTERM)  # what a worker does then

    wait_for(lambda: newest_on_box(client, pool).state_name == "Cancelled")
    assert running.desk.wait(60) != 0


def test_pool_without_a_worker_ever_is_told_before_anything_runs(team: Team, ready: None) -> None:
    done = team.desk.pipeline("no-such-pool")

    assert done.returncode == 1
    assert "no worker was ever set up for the work pool 'no-such-pool'" in done.stdout
    assert "python -m flows.card_worker --pool no-such-pool" in done.stdout


def test_run_that_a_worker_took_from_the_very_pool_stays_where_it_is(
    team: Team, pool: str, ready: None, client: SyncPrefectClient
) -> None:
    """It would wait for its own place else."""
    deployment = client.create_deployment(
        flow_id=UUID(str(client.create_flow(pipeline))),
        name="on-the-box",
        work_pool_name=pool,
        entrypoint="flows.pipeline.pipeline",
        parameters={"stages": ["train@lora"], "card_pool": pool},
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(team.box.clone)}}],
    )
    run = client.create_flow_run_from_deployment(deployment)
    before = len(runs_on_box(client, pool))
    wait_for(lambda: (state := client.read_flow_run(run.id).state) is not None and state.is_final())

    assert client.read_flow_run(run.id).state_name == "Completed"
    assert (team.box.clone / "lora.txt").exists()
    assert len(runs_on_box(client, pool)) == before


def test_box_that_gives_to_another_remote_is_told(team: Team, pool: str, ready: None, tmp_path: Path) -> None:
    (team.desk.clone / "params.yaml").write_text("lora: 5\nfull: 1\n")
    config = team.box.clone / ".dvc" / "config.local"
    config.write_text(f"['remote \"team\"']\n    url = {tmp_path / 'other'}\n")
    done = team.desk.pipeline(pool, "--stage", "train@lora")
    config.unlink()

    assert done.returncode == 1
    assert "there is no delivery in this clone's DVC remote: does it use another?" in done.stdout
