"""A flow run that a worker started ends with the worker, its stage included."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import get_current_settings

from flows.pipeline import pipeline

REPOSITORY = Path(__file__).parents[2]
WAITS = """
import os, pathlib, time
from mgm_lora.stages.process import die_with_parent
die_with_parent()
pathlib.Path('stage.pid').write_text(str(os.getpid()))
time.sleep(300)
"""
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


def test_stage_ends_with_the_worker_however_that_is_ended(prefect_server: None, tmp_path: Path) -> None:
    """Three workers at a time, each with a pool and a project of its own: one for each signal."""
    client = get_client(sync_client=True)
    assert isinstance(client, SyncPrefectClient)
    workers = {number: start_worker(tmp_path / number.name, client=client) for number in ENDINGS}
    started: list[psutil.Process] = []
    try:
        for number, worker in workers.items():
            path = tmp_path / number.name / "stage.pid"
            wait_for(lambda path=path: path.is_file() and path.read_text() != "", seconds=180)  # type: ignore[misc]
            below = psutil.Process(worker.pid).children(recursive=True)
            assert int(path.read_text()) in [process.pid for process in below]
            started += below
            worker.send_signal(number)
        wait_for(lambda: not any(is_alive(process) for process in started), seconds=60)
        for worker in workers.values():
            worker.wait(60)
    finally:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for worker in workers.values():
            worker.kill()
            worker.wait()


def start_worker(folder: Path, *, client: SyncPrefectClient) -> "subprocess.Popen[bytes]":
    """A worker on a pool with one flow run, in a folder with one stage that waits."""
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    (folder / "wait.py").write_text(WAITS)
    (folder / "dvc.yaml").write_text(
        "stages:\n  wait:\n    cmd: true && python wait.py && true\n    deps: [wait.py]\n    outs: [never]\n"
    )
    client.create_work_pool(WorkPoolCreate(name=folder.name, type="process"))
    deployment = client.create_deployment(
        flow_id=UUID(str(client.create_flow(pipeline))),
        name=folder.name,
        work_pool_name=folder.name,
        entrypoint="flows.pipeline.pipeline",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
    )
    client.create_flow_run_from_deployment(deployment)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": str(get_current_settings().api.url)}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", folder.name, "--limit", "1"]
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(happened: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.05)
