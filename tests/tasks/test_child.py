"""One stage in a real `dvc repro -s`: its lines while it runs, how it ended, and that nothing stays behind."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mgm_lora.stages import dvc_child
from tasks.child import Reproduction, command_by_hand, reproduce


def run(project: Path, *, on_line: Callable[[str], None] = lambda line: None, force: bool = False) -> Reproduction:
    return reproduce("only", root=project, force=force, pull=False, on_line=on_line)


def test_ran_skipped_and_restored_are_told_apart(project: Path, one_stage: Callable[[str], None]) -> None:
    one_stage("python copy.py copy.py out.txt")

    first, second = run(project), run(project)
    (project / "out.txt").unlink()
    (project / "dvc.lock").unlink()
    restored = run(project)

    assert [(each.exit_code, each.ran) for each in (first, second, restored)] == [(0, True), (0, False), (0, False)]
    assert (project / "out.txt").is_file()
    assert run(project, force=True).ran


def test_lines_come_while_the_stage_runs(project: Path, one_stage: Callable[[str], None]) -> None:
    # The stage waits until the line that it wrote has been received.
    (project / "talk.py").write_text(
        "import pathlib, time\nprint('waiting')\nanswer = pathlib.Path('answer')\n"
        "while not answer.exists(): time.sleep(0.01)\n"
        "print('heard you \\x1b[31min red\\x1b[0m')\npathlib.Path('out.txt').touch()\n"
    )
    one_stage("timeout 20 python talk.py")
    lines: list[str] = []

    def answer(line: str) -> None:
        lines.append(line)
        if line == "waiting":
            (project / "answer").touch()

    assert run(project, on_line=answer).exit_code == 0
    assert lines[:4] == ["Running stage 'only':", "> timeout 20 python talk.py", "waiting", "heard you in red"]


def test_failure_keeps_the_last_lines(project: Path, one_stage: Callable[[str], None]) -> None:
    one_stage("""python -c "import sys; print(*range(100), sep='\\n'); sys.exit('no space left')" """)

    failed = run(project)

    assert failed.exit_code != 0
    assert "no space left" in failed.last_lines
    assert any("failed to reproduce 'only'" in line for line in failed.last_lines)
    assert "1" not in failed.last_lines


def test_redrawn_lines_are_thinned_to_their_newest_state(
    project: Path, one_stage: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_child, "_PROGRESS_SECONDS", 0.2)
    (project / "bar.py").write_text(
        "import sys, time\nfor i in range(60):\n    sys.stderr.write(f'\\rstep {i}/60'); sys.stderr.flush(); time.sleep(0.02)\n"
        "sys.stderr.write('\\rstep 60/60\\n')\nopen('out.txt', 'w')\n"
    )
    one_stage("python bar.py")

    lines: list[str] = []
    run(project, on_line=lines.append)

    steps = [line for line in lines if line.startswith("step ")]
    assert steps[-1] == "step 60/60"
    assert 2 <= len(steps) <= 10
    assert all("\r" not in line for line in lines)


def test_process_that_the_stage_left_running_is_ended_and_not_waited_for(
    project: Path, one_stage: Callable[[str], None]
) -> None:
    one_stage("sleep 300 & echo $! > left.txt; python copy.py copy.py out.txt")

    started = time.monotonic()
    assert run(project).exit_code == 0

    assert time.monotonic() - started < 60
    _wait_until_gone(int((project / "left.txt").read_text()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_error_in_the_flow_ends_the_stage(
    project: Path, one_stage: Callable[[str], None], error: type[BaseException]
) -> None:
    one_stage("echo $$ > shell.txt; echo begun; python -c 'import time; time.sleep(300)' ; true")

    def break_off(line: str) -> None:
        if line == "begun":
            raise error

    with pytest.raises(error):
        run(project, on_line=break_off)

    _wait_until_gone(int((project / "shell.txt").read_text()))


def test_stages_use_this_python_whatever_path_says(
    project: Path, one_stage: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    one_stage("""python -c "import sys; open('out.txt', 'w').write(sys.prefix)" """)

    assert run(project).exit_code == 0
    assert (project / "out.txt").read_text() == sys.prefix


def test_command_by_hand_is_what_was_run() -> None:
    assert command_by_hand("train@lora", force=False, pull=False) == "dvc repro -s train@lora"
    assert command_by_hand("a b", force=True, pull=True) == "dvc repro --force --pull -s 'a b'"


def _wait_until_gone(pid: int) -> None:
    gone = threading.Event()
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            gone.set()
            break
        time.sleep(0.02)
    assert gone.is_set(), f"process {pid} is still there"
