"""What the health check finds of DVC, each thing really broken."""

import json
import subprocess
import sys
import time
from pathlib import Path

from dvc.repo import Repo

from tasks.dvc_health import check_locks, check_remote


def set_remote(url: str) -> None:
    with Repo() as repo, repo.config.edit() as config:
        config["remote"]["team"] = {"url": url}
        config["core"]["remote"] = "team"


def test_remote_is_tried_by_writing_and_left_as_it_was(project: Path) -> None:
    assert check_remote(project).state == "note"  # none
    set_remote(str(project.parent / "remote"))
    found = check_remote(project)
    assert (found.state, "takes and gives" in found.found) == ("ok", True)
    assert not [path for path in (project.parent / "remote").rglob("*") if path.is_file()]


def test_remote_that_takes_nothing_is_wrong(project: Path) -> None:
    (project.parent / "file").touch()
    set_remote(str(project.parent / "file" / "remote"))  # a folder can't be there
    found = check_remote(project)
    assert found.state == "wrong"
    assert "can't write" in found.found


def test_remote_whose_kind_is_not_installed_is_wrong(project: Path) -> None:
    set_remote("oss://bucket/path")
    assert check_remote(project).state == "wrong"


def test_remote_is_not_looked_at_while_another_dvc_is_at_work(project: Path) -> None:
    hold = "from dvc.repo import Repo, lock_repo\nwith lock_repo(Repo()):\n    print('held', flush=True)\n    input()\n"
    other = subprocess.Popen([sys.executable, "-P", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        found = check_remote(project)
    finally:
        other.kill()
        other.communicate()
    assert (found.state, "another dvc is at work" in found.found) == ("note", True)


def test_lock_of_a_stage_that_runs_is_well_and_left_by_a_dead_dvc_is_wrong(project: Path) -> None:
    rwlock = project / ".dvc" / "tmp" / "rwlock"
    assert check_locks(project).state == "ok"
    (project / "dvc.yaml").write_text("stages:\n  only:\n    cmd: touch begun; sleep 300\n    outs: [out.txt]\n")
    dvc = subprocess.Popen([sys.executable, "-P", "-m", "dvc", "repro", "--quiet"], start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not (project / "begun").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        working = check_locks(project)
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{dvc.pid}"], check=True)
        dvc.wait()
    left = check_locks(project)

    assert (working.state, "by 1 dvc at work" in working.found) == ("ok", True)
    assert (left.state, f"process {dvc.pid} " in left.found) == ("wrong", True)
    assert "rm .dvc/tmp/rwlock" in left.advice
    # its number given to another program
    text = rwlock.read_text().replace(str(dvc.pid), "1")
    assert json.loads(text)
    rwlock.write_text(text)
    assert check_locks(project).state == "wrong"


def test_lock_file_that_a_killed_dvc_left_empty_is_wrong(project: Path) -> None:
    (project / ".dvc" / "tmp" / "rwlock").write_text("")
    found = check_locks(project)
    assert (found.state, "broken" in found.found) == ("wrong", True)
