import time, os
from pathlib import Path
import psutil, pytest
from .test_server_lost import *  # noqa
from ..two_machines import *  # noqa

def test_zombie(team, start_server):
    start_server()
    worker = team.box.start_worker(POOL)
    hold = team.box.hold()
    wait_for(lambda: "started!" in (team.box.folder / "worker.log").read_text())
    desk = team.desk.start("python", "-m", "flows.pipeline", "--card-pool", POOL, "--stage", "train@lora", log="log")
    wait_for(team.box.has_run)
    time.sleep(35)
    kill_all(worker); t=time.monotonic()
    print("rc", desk.wait(400), time.monotonic()-t)
    print((team.desk.folder / "log").read_text()[-1500:])

def test_outage(team, start_server):
    server = start_server()
    worker = team.box.start_worker(POOL)
    wait_for(lambda: "started!" in (team.box.folder / "worker.log").read_text())
    time.sleep(5)
    kill_all(server); t=time.monotonic()
    try:
        print("worker rc", worker.wait(1500), time.monotonic()-t)
    except Exception as e: print("still there", time.monotonic()-t); worker.kill()
    print((team.box.folder / "worker.log").read_text()[-1500:])
