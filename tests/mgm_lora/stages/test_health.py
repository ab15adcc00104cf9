"""What the health check finds on a machine, each thing really broken."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgm_lora.stages.health import Finding, check_cards, check_disk, check_git, check_secrets, check_store
from mgm_lora.training.card_lock import FOLDER_VARIABLE

from ...mlflow_store import forget_store
from ...small_disk import needs_mount, small_disk
from ...small_project import write_params

HOLDS = """
import sys, time
from mgm_lora.training.card_lock import hold_card
with hold_card('gpu-7', arm='lora', when_taken='fail'):
    print('held', flush=True)
    time.sleep(300)
"""


def states(findings: Iterator[Finding]) -> list[str]:
    return [finding.state for finding in findings]


@needs_mount
def test_full_disk_is_told_with_what_may_be_removed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk, disk.full():
        full = check_disk(disk.folder)
    assert (full.state, full.found.startswith("0.0 GiB free")) == ("wrong", True)
    assert "dvc gc" in full.advice


def test_disk_with_room_is_well(tmp_path: Path) -> None:
    assert check_disk(tmp_path, min_free_gib=0.0).state == "ok"


def test_what_is_not_committed_is_a_note(tmp_path: Path) -> None:
    assert check_git(tmp_path).state == "note"  # no repository
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert check_git(tmp_path).state == "ok"
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    found = check_git(tmp_path)
    assert (found.state, found.found) == ("note", "not committed: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more")


def test_our_own_settings_hold_no_secret(tmp_path: Path) -> None:
    write_params(tmp_path)
    assert states(check_secrets(tmp_path)) == ["ok"]


@pytest.mark.parametrize("line", ["registry: {tracking_uri: 'https://me:hush@host'}", "guards: {api_key: hush}"])
def test_password_in_the_settings_is_told_and_not_shown(tmp_path: Path, line: str) -> None:
    (tmp_path / "params.yaml").write_text(f"evaluation: {{max_new_tokens: 8}}\n{line}\n")
    (found,) = check_secrets(tmp_path)
    assert found.state == "wrong"
    assert "looks like a password" in found.found
    assert "hush" not in found.found + found.advice


def test_password_of_a_remote_is_told_where_git_takes_it_along(tmp_path: Path) -> None:
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    dvc = [sys.executable, "-m", "dvc", "remote"]
    subprocess.run([*dvc, "add", "--quiet", "team", "https://host/x"], cwd=tmp_path, check=True)
    subprocess.run([*dvc, "modify", "--local", "team", "password", "hush"], cwd=tmp_path, check=True)
    assert states(check_secrets(tmp_path)) == ["ok"]
    subprocess.run([*dvc, "modify", "team", "password", "hush"], cwd=tmp_path, check=True)
    (found,) = check_secrets(tmp_path)
    assert found.state == "wrong"
    assert "password looks like a password" in found.found
    assert "--local" in found.advice


def test_stopped_trainer_that_holds_a_card_is_told_and_a_dead_one_holds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))
    assert states(check_cards()) == ["ok"]
    command = [sys.executable, "-c", HOLDS]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        assert trainer.stdout
        assert trainer.stdout.readline() == b"held\n"
        (working,) = check_cards()
        trainer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, trainer.pid, os.WSTOPPED)
        (stopped,) = check_cards()
    finally:
        trainer.kill()
        trainer.wait()
    assert (working.state, working.subject) == ("ok", "card gpu-7")
    assert stopped.state == "wrong"
    assert f"kill -CONT {trainer.pid}" in stopped.advice
    assert [finding.found for finding in check_cards()] == ["nobody trains"]


def test_registry_is_tried_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    assert check_store(tmp_path).state == "note"
    assert not (tmp_path / "mlflow.db").exists()  # looking makes nothing
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    assert check_store(tmp_path).state == "ok"
    (tmp_path / "mlflow.db").write_text("no database")
    broken = check_store(tmp_path)
    assert broken.state == "wrong"
    assert "can't be written" in broken.found
    forget_store()


def test_registry_that_does_not_answer_and_settings_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_params(tmp_path, {"registry": {"tracking_uri": "http://127.0.0.1:9", "model_name": "demo"}})
    away = check_store(tmp_path)
    assert (away.state, "doesn't answer" in away.found) == ("wrong", True)
    (tmp_path / "params.yaml").write_text("training: {num_epochs: many}\n")
    assert check_store(tmp_path).state == "wrong"
    forget_store()
