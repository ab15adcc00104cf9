"""The pipeline on a real Prefect server, over real DVC stages of a small project. The tasks are tested here too: they need a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from dvc.repo import Repo
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, State, TaskRun, TaskRunResult
from prefect.settings import get_current_settings

from flows import pipeline as pipeline_module
from flows.parts import training
from flows.pipeline import main, pipeline

ORDER = ["prepare", "train@lora", "train@full", "report"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def test_each_stage_is_one_task_run_in_dvcs_order(first_run: Any, client: SyncPrefectClient) -> None:
    assert first_run.state.is_completed()
    assert first_run.state.message == "4 Completed"
    runs = task_runs(first_run.state, client)
    assert [(run.name, run.state_name) for run in runs] == [(name, "Completed") for name in ORDER]


def test_task_runs_form_the_same_graph(first_run: Any, client: SyncPrefectClient) -> None:
    runs = task_runs(first_run.state, client)
    names = {run.id: run.name for run in runs}
    needs = {run.name: {names[need] for need in needs_of(run)} for run in runs if run.name != "prepare"}

    assert needs == {"train@lora": {"prepare"}, "train@full": {"prepare"}, "report": {"train@lora", "train@full"}}


def test_lines_of_dvc_and_of_the_stage_are_in_the_log_of_its_task_run(
    first_run: Any, client: SyncPrefectClient
) -> None:
    train = next(run.id for run in task_runs(first_run.state, client) if run.name == "train@lora")

    lines = [message for task_run_id, message in log(first_run.state, client) if task_run_id == train]

    assert lines[:3] == ["Running stage 'train@lora':", "> python stage.py lora lora.txt", "hello from lora"]


def test_metrics_plots_pictures_and_reports_are_artifacts(first_run: Any, client: SyncPrefectClient) -> None:
    found = {artifact.key: artifact for artifact in artifacts(first_run.state, client)}

    assert {key: artifact.type for key, artifact in found.items()} == {
        "lora": "table",
        "full": "table",
        "curve": "table",
        "picture": "markdown",
        "docs": "markdown",
        "docs-index": "markdown",
    }
    assert json.loads(str(found["lora"].data)) == [
        {"metric": "score.value", "value": 0.75},
        {"metric": "score.num_samples", "value": 1},
    ]
    assert json.loads(str(found["curve"].data))[1] == {"step": "2", "loss": "0.25"}
    assert str(found["picture"].data).startswith("![picture.png](data:image/png;base64,")
    assert (first_run.root / "docs" / "index.html").as_uri() in str(found["docs-index"].data)


def test_stage_that_draws_a_bar_shows_how_far_it_is_and_the_way_to_mlflow(
    project: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGM_LORA_MLFLOW", "http://127.0.0.1:5000")
    set_params(project, lora=2)
    # the bar stops half way, until its artifact is there
    url = f"{get_current_settings().api.url}/artifacts/latest/filter"
    (project / "lora-meddles.py").write_text(
        "import time, urllib.request\nfrom tqdm import tqdm\n"
        "def found():\n"
        f"    ask = urllib.request.Request({url!r}, data=b'{{}}', headers={{'Content-Type': 'application/json'}})\n"
        "    return json.loads(urllib.request.urlopen(ask).read())\n"
        "with tqdm(total=4) as bar:\n    bar.update(2)\n    bar.refresh()\n    print(file=sys.stderr)\n"
        "    while not [each for each in found() if each['key'] == 'progress-train-lora']: time.sleep(0.1)\n"
        "    seen = [each for each in found() if each['key'] == 'progress-train-lora'][0]\n"
        "    pathlib.Path('seen.json').write_text(json.dumps(seen))\n    bar.update(2)\n"
    )

    state = pipeline(("train@lora",), return_state=True)

    assert names_and_states(state, client)["train@lora"] == "Completed"
    seen = json.loads((project / "seen.json").read_text())
    assert (seen["type"], float(seen["data"])) == ("progress", 50.0)
    assert seen["description"].startswith("`train@lora` 2 of 4, ")
    found = {artifact.key: artifact for artifact in artifacts(state, client)}
    assert float(str(found["progress-train-lora"].data)) == 100.0
    assert "done in" in str(found["progress-train-lora"].description)
    assert "http://127.0.0.1:5000" in str(found["mlflow"].data)


def test_second_run_finds_everything_cached_and_still_shows_it(project: Path, client: SyncPrefectClient) -> None:
    state = pipeline(return_state=True)

    assert state.message == "4 Cached"
    assert names_and_states(state, client) == dict.fromkeys(ORDER, "Cached")
    assert all(run.state_type == "COMPLETED" for run in task_runs(state, client))
    assert len(artifacts(state, client)) == 6


def test_changed_setting_runs_only_what_depends_on_it_and_its_return_is_restored(
    project: Path, client: SyncPrefectClient
) -> None:
    set_params(project, lora=2)
    changed = names_and_states(pipeline(return_state=True), client)
    set_params(project, lora=1)
    back = pipeline(return_state=True)

    assert changed == {"prepare": "Cached", "train@lora": "Completed", "train@full": "Cached", "report": "Completed"}
    assert back.message == "4 Cached"
    assert (project / "lora.txt").read_text() == "lora 1"
    messages = {run.name: str(run.state.message) for run in task_runs(back, client) if run.state}
    assert messages["train@full"] == "unchanged"
    assert "restored" in messages["train@lora"]


def test_file_that_changes_during_the_run_is_not_taken_for_unchanged(project: Path, client: SyncPrefectClient) -> None:
    # At the start `train@lora` alone has changed; while it runs, it changes what `train@full`, no child of it, depends on.
    set_params(project, lora=2)
    (project / "lora-meddles.py").write_text("""open('params.json', 'w').write('{"lora": 2, "full": 7}')""")

    states = names_and_states(pipeline(return_state=True), client)

    assert states == {"prepare": "Cached", "train@lora": "Completed", "train@full": "Completed", "report": "Completed"}
    assert (project / "full.txt").read_text() == "full 7"


def test_failure_says_why_and_stops_what_depends_on_it_visibly(project: Path, client: SyncPrefectClient) -> None:
    set_params(project, lora=-1, full=5)
    add_stage(project, "serve", dep="docs.html")  # two steps behind the failure

    state = pipeline(return_state=True)

    assert state.is_failed()
    assert str(state.message).startswith("train@lora failed (1 Cached, 1 Failed, 1 Completed, 2 NotRun)")
    runs = {run.name: run for run in task_runs(state, client)}
    assert {name: run.state_name for name, run in runs.items()} == {
        "prepare": "Cached",
        "train@lora": "Failed",
        "train@full": "Completed",
        "report": "NotRun",
        "serve": "NotRun",
    }
    for words in (message_of(runs["train@lora"]), str(state.message)):
        assert "lora met a negative value" in words
        assert f"cd {project} && dvc repro -s train@lora" in words
    assert message_of(runs["serve"]) == "not run: it needs 'train@lora', which failed"
    assert needs_of(runs["serve"]) == {runs["report"].id}
    assert (project / "full.txt").read_text() == "full 5"


@pytest.mark.parametrize("code, attempts, ended", [(4, 3, "Completed"), (2, 1, "Failed")])
def test_what_may_pass_is_tried_again_and_what_will_not_is_not(
    project: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, code: int, attempts: int, ended: str
) -> None:
    monkeypatch.setattr(pipeline_module, "run_stage", pipeline_module.run_stage.with_options(retry_delay_seconds=0))
    set_params(project, lora=2)
    # ends so in its first two attempts
    (project / "lora-meddles.py").write_text(
        "tries = pathlib.Path('tries')\nbefore = tries.stat().st_size if tries.exists() else 0\n"
        f"tries.write_text('x' * (before + 1))\nif before < 2:\n    sys.exit({code})\n"
    )

    state = pipeline(("train@lora",), return_state=True)

    run = next(run for run in task_runs(state, client) if run.name == "train@lora")
    assert (run.state_name, run.run_count) == (ended, attempts)
    assert (project / "tries").stat().st_size == attempts


def test_stage_that_is_added_to_dvc_yaml_appears(project: Path, client: SyncPrefectClient) -> None:
    add_stage(project, "serve", dep="docs.html")

    states = names_and_states(pipeline(return_state=True), client)

    assert states == {**dict.fromkeys(ORDER, "Cached"), "serve": "Completed"}


def test_metrics_that_cannot_be_shown_are_named_and_do_no_harm(project: Path, client: SyncPrefectClient) -> None:
    metrics = "    metrics:\n      - oops.json:\n          cache: false\n"
    add_stage(project, "serve", dep="docs.html", then="&& echo oops > oops.json", more=metrics)

    state = pipeline(return_state=True)

    assert names_and_states(state, client)["serve"] == "Completed"
    assert any(message.startswith("can't show 'oops.json'") for _, message in log(state, client))


def test_part_runs_its_stages_and_what_they_need(project: Path, client: SyncPrefectClient) -> None:
    set_params(project, lora=3)

    states = names_and_states(training(return_state=True), client)

    assert states == {"prepare": "Cached", "train@lora": "Completed", "train@full": "Cached"}


def test_missing_data_is_pulled_only_where_asked(project: Path, client: SyncPrefectClient) -> None:
    with Repo() as repo:
        with repo.config.edit() as config:
            config["remote"]["here"] = {"url": str(project.parent / "remote")}
            config["core"]["remote"] = "here"
        repo.add("source.txt")
        repo.push()
    (project / "source.txt").unlink()
    shutil.rmtree(project / ".dvc" / "cache")

    refused = pipeline(("prepare",), pull=False, return_state=True)
    pulled = pipeline(("prepare",), return_state=True)

    assert names_and_states(refused, client) == {"source.txt.dvc": "Failed", "prepare": "NotRun"}
    assert names_and_states(pulled, client) == {"source.txt.dvc": "Cached", "prepare": "Cached"}
    assert (project / "source.txt").read_text() == "source"


def test_stage_on_the_card_holds_a_slot_of_its_limit_while_it_runs(
    project: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{get_current_settings().api.url}/v2/concurrency_limits/gpu"
    ask = f"import urllib.request as u; open('slots.json', 'wb').write(u.urlopen('{url}').read())"
    (project / "dvc.yaml").write_text(
        f'stages:\n  train:\n    cmd: python -c "{ask}"\n    outs: [slots.json]\n    deps: [stage.py]\n    meta: {{card: true}}\n'
    )
    client.upsert_global_concurrency_limit_by_name("gpu", 1)

    state = pipeline(return_state=True)

    assert names_and_states(state, client) == {"train": "Completed"}
    assert json.loads((project / "slots.json").read_text())["active_slots"] == 1
    assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0


def test_command_line_says_how_it_went_and_where_to_look(
    project: Path, prefect_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--stage", "prepare", "--stage", "train"]) == 0
    good = capsys.readouterr().out
    assert main(["--stage", "trian"]) == 1
    bad = capsys.readouterr().out

    assert "pipeline: Completed. 3 Cached" in good
    assert "/runs/flow-run/" in good
    assert "no such stage: trian" in bad
    assert "prepare, train@lora" in bad


def test_server_that_is_down_at_the_start_is_one_error_and_runs_nothing(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.pipeline", "--force"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": "http://127.0.0.1:9/api"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Prefect's server at http://127.0.0.1:9/api (PREFECT_API_URL) doesn't answer" in done.stderr
    assert "hello" not in done.stdout


def test_passwords_that_a_stage_says_are_not_in_the_log(
    project: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhush-1")
    (project / "lora-meddles.py").write_text(
        "import os\nprint('key', os.environ['AWS_SECRET_ACCESS_KEY'])\nsys.exit('no entry to https://me:hushhush-2@store/x')\n"
    )
    set_params(project, lora=2)

    state = pipeline(("train@lora",), return_state=True)

    said = [message for _, message in log(state, client)] + [str(state.message)]
    assert any("key ***" in line for line in said)
    assert sum("no entry to https://me:***@store/x" in line for line in said) >= 2  # in the log, and in why it failed
    assert not [line for line in said if "hushhush" in line]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_flow_leaves_nothing_running(project: Path, prefect_server: None, number: signal.Signals) -> None:
    # A shell stands between dvc and the stage, which does what every stage of ours does first.
    (project / "wait.py").write_text(
        "import os, pathlib, time\nfrom mgm_lora.stages.process import die_with_parent\ndie_with_parent()\n"
        "pathlib.Path('stage.pid').write_text(str(os.getpid()))\ntime.sleep(300)\n"
    )
    (project / "dvc.yaml").write_text(
        "stages:\n  wait:\n    cmd: true && python wait.py && true\n    deps: [wait.py]\n    outs: [never]\n"
    )
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": str(get_current_settings().api.url)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    below: list[psutil.Process] = []
    try:
        wait_for(lambda: (project / "stage.pid").is_file() and (project / "stage.pid").read_text() != "")
        below = psutil.Process(flow.pid).children(recursive=True)
        assert int((project / "stage.pid").read_text()) in [process.pid for process in below]
        assert len(below) == 3  # dvc, the shell, the stage
        flow.send_signal(number)
        wait_for(lambda: not any(is_alive(process) for process in below))
    finally:
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        flow.kill()
        flow.wait()


def run_id(state: State[Any]) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def task_runs(state: State[Any], client: SyncPrefectClient) -> list[TaskRun]:
    """Those of a flow run, as they were started; the server hears of them by and by."""
    run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id(state)]))

    def read() -> list[TaskRun]:
        return client.read_task_runs(flow_run_filter=run)

    wait_for(lambda: bool(read()) and all(run.state and run.state.is_final() for run in read()))
    return sorted(read(), key=lambda run: run.id.int)  # version 7: in order of time


def names_and_states(state: State[Any], client: SyncPrefectClient) -> dict[str, str]:
    return {run.name: str(run.state_name) for run in task_runs(state, client)}


def needs_of(run: TaskRun) -> set[UUID]:
    return {need.id for need in run.task_inputs["wait_for"] if isinstance(need, TaskRunResult)}


def message_of(run: TaskRun) -> str:
    assert run.state is not None
    return str(run.state.message)


def log(state: State[Any], client: SyncPrefectClient) -> list[tuple[Any, str]]:
    """Task run and message of each entry, once the flow's last one is there."""
    run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id(state)]))

    last = "Finished in state"
    wait_for(lambda: any(not e.task_run_id and e.message.startswith(last) for e in client.read_logs(run)))
    return [(entry.task_run_id, entry.message) for entry in client.read_logs(run)]


def artifacts(state: State[Any], client: SyncPrefectClient) -> list[Artifact]:
    run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id(state)]))
    return client.read_artifacts(artifact_filter=run)


def add_stage(project: Path, name: str, *, dep: str, then: str = "", more: str = "") -> None:
    command = f"python stage.py {name} {name}.txt {then}"
    with (project / "dvc.yaml").open("a") as file:
        file.write(f"  {name}:\n    cmd: {command}\n    deps: [{dep}]\n    outs: [{name}.txt]\n{more}")


def set_params(project: Path, **values: int) -> None:
    (project / "params.json").write_text(json.dumps({"lora": 1, "full": 1, **values}))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(happened: Callable[[], bool], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.05)
