"""Our own pipeline on two machines, as far as the plan: the data are checked at the desk, the plan is made on the box."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..small_project import make_project
from ..two_machines import Team, make_team, wait_for

POOL = "card-whole"


@pytest.fixture
def team(tiny_base: Path, tmp_path: Path) -> Team:
    return make_team(tmp_path / "team", fill=lambda folder: make_project(folder, base=tiny_base), OMP_NUM_THREADS="1")


@pytest.fixture
def worker(team: Team, prefect_server: None) -> Iterator[None]:
    worker = team.box.start_worker(POOL)
    wait_for(lambda: "started!" in (team.box.folder / "worker.log").read_text())
    yield
    worker.terminate()
    worker.wait(60)


def test_data_are_checked_at_the_desk_and_the_plan_is_made_on_the_box(team: Team, worker: None) -> None:
    done = team.desk.pipeline(POOL, "--stage", "plan@lora")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 Cached, 2 Completed" in done.stdout
    assert f"run by the pool '{POOL}'" in done.stderr
    plan = json.loads((team.desk.clone / "artifacts" / "plans" / "lora" / "plan.json").read_text(encoding="utf-8"))
    assert plan["arm"] == "lora"
    log = (team.box.folder / "worker.log").read_text()
    assert "> python -m mgm_lora plan --arm lora" in log
    assert "> python -m mgm_lora validate" not in log
    assert not (team.box.clone / "artifacts").exists()
    assert "3 Cached" in team.desk.pipeline(POOL, "--stage", "plan@lora").stdout
