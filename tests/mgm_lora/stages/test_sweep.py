"""Sweeps in a project with real git, DVC and MLflow: what is run, what is left after kills and faults, and what is written down."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mgm_lora.errors import SettingsError, SweepError, TrialInterruptedError
from mgm_lora.run_names import EXPERIMENT_TAG, PARAM_NAMES
from mgm_lora.settings import read_entries, read_settings
from mgm_lora.stages import sweep
from mgm_lora.stages.sweep_runner import plan_sweep
from mgm_lora.sweeping.results import ArmOutcome, Asked, SweepResult, TrialResult, read_sweep

from ...mlflow_store import forget_store
from ...small_project import environment, run_in
from ...sweep_project import RATES, add_sweep, commit, experiments, make_sweep_project, trained_rates

FAILING = """
about: one rate too high
arms: [lora]
search: grid
vary:
  rate: {entry: arm.learning_rate, values: [0.9, 0.1]}
"""
FULL = """
about: the other arm
arms: [full]
search: grid
vary:
  rate: {entry: arm.learning_rate, times: [1, 10]}
"""
REPORT = Path("reports/sweeps/rates.json")
RESULT_OF_RATES = Path("sweeps/results/rates.json")


@dataclass(frozen=True)
class Swept:
    """A project in which the sweep `rates` has been run once."""

    root: Path
    result: SweepResult
    told: str


@pytest.fixture(scope="session")
def swept(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Read only: take `swept_project` to change it."""
    root = make_sweep_project(tmp_path_factory.mktemp("swept") / "project", store=empty_store)
    (root / "notes.txt").write_text("not committed")
    told = StringIO()
    with chdir(root), redirect_stdout(told):
        result = run()
    forget_store()
    return Swept(root, result, told.getvalue())


@pytest.fixture
def swept_project(swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, somewhere else, as the working directory."""
    root = tmp_path / "moved"
    shutil.copytree(swept.root, root, symlinks=True)
    monkeypatch.chdir(root)
    yield root
    forget_store()


@pytest.fixture
def project(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project as the working directory; nothing has been run in it."""
    root = make_sweep_project(tmp_path / "project", store=empty_store)
    monkeypatch.chdir(root)
    yield root
    forget_store()


def run(name: str = "rates", *, evaluate: bool = False, retry: bool = False, apply: bool = False) -> SweepResult:
    return sweep.run(name, evaluate=evaluate, retry=retry, apply=apply)


def states(result: SweepResult) -> list[str]:
    return [trial.state for trial in result.trials]


def all_runs(root: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


@contextmanager
def sweeping(project: Path, name: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The sweep in a process of its own, which is killed in the end."""
    with (project / "sweep.out").open("w") as out:
        command = [sys.executable, "-m", "mgm_lora", "sweep", name]
        process = subprocess.Popen(command, cwd=project, env=environment(), stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "waited for two minutes"
        time.sleep(0.02)


def test_best_by_held_out_loss_is_found_and_reported(swept: Swept) -> None:
    result, report = swept.result, swept.root / REPORT

    assert states(result) == ["done"] * 3
    assert result.arms[0].best == result.trials[1].name
    assert result.arms[0].at_the_edge == {}
    assert result.trials[1].entries == {"arms.lora.learning_rate": 0.01}
    assert result.trials[1].figures["step_memory_gib"] == 0.25
    assert read_sweep(report) == result
    assert read_sweep(swept.root / RESULT_OF_RATES) == result
    assert "| **0.01** | **1** |" in report.with_suffix(".md").read_text()
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "[2/3] held-out loss 1, the best of lora so far" in swept.told
    assert experiments(swept.root) == sorted(trial.name for trial in result.trials)


def test_every_trial_is_a_child_run_of_the_sweep(swept: Swept) -> None:
    runs = all_runs(swept.root)

    (parent,) = [run for run in runs if run.info.run_name == "sweep rates"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/lora/heldout_loss"] == 1.0
    children = {run.data.tags[EXPERIMENT_TAG]: run for run in runs if run is not parent}
    assert children.keys() == {trial.name for trial in swept.result.trials}
    for trial in swept.result.trials:
        child = children[trial.name]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["sweep.rate"] == str(trial.choices["rate"])
        assert child.data.metrics["heldout/loss"] == trial.loss  # the curve's last
        assert child.data.metrics["cost/minutes"] == trial.figures["minutes"]
        assert child.data.params.keys() == {*PARAM_NAMES, "sweep.rate"}
        assert child.data.params["learning_rate"] == str(trial.choices["rate"])
        assert child.data.tags["role"] == "trial"


def test_project_itself_stays_as_it_was(swept: Swept) -> None:
    assert run_in(swept.root, ["git", "status", "--porcelain"]).split() == [
        *("??", "notes.txt", "??", "reports/", "??", "sweeps/results/"),
    ]
    assert run_in(swept.root, ["git", "stash", "list"]) == ""
    assert run_in(swept.root, ["git", "rev-parse", "--abbrev-ref", "HEAD"]).strip() != "HEAD"


def test_second_run_trains_nothing_even_where_the_project_was_moved(swept: Swept, swept_project: Path) -> None:
    assert run() == swept.result
    assert trained_rates(swept_project) == [0.001, 0.01, 0.1]


@pytest.mark.parametrize("left", ["stash", "lock"])
def test_what_a_kill_has_left_in_the_copy_is_not_taken_up(swept_project: Path, left: str) -> None:
    """`dvc exp run` would run an experiment that was stashed and never begun together with the next one."""
    copy = swept_project / "build/sweeps/rates/project"
    if left == "stash":
        run_in(copy, ["dvc", "exp", "run", "--queue", "-S", "arms.lora.learning_rate=0.05", "train@lora-17"])
        run_in(copy, ["git", "update-ref", "--create-reflog", "refs/exps/stash", "refs/exps/celery/stash"])
    else:
        (copy / ".git/index.lock").touch()
    add_sweep(swept_project, "rates", RATES.replace("0.1]", "0.1, 0.02]"))

    result = run()

    assert states(result) == ["done"] * 4
    assert trained_rates(swept_project) == [0.001, 0.01, 0.1, 0.02]


def test_killed_sweep_goes_on_where_it_was(project: Path) -> None:
    (project / "hold").touch()
    add_sweep(project, "rates", RATES.replace(", 0.1]", "]"))
    with sweeping(project, "rates"):
        wait_for(lambda: (project / "pid").exists())
        with pytest.raises(SweepError, match="is being run by another process"):
            run()
    trainer = Path(f"/proc/{(project / 'pid').read_text()}")
    wait_for(lambda: not trainer.exists())
    assert not RESULT_OF_RATES.exists()  # the comparison is not to see half a sweep
    (project / "hold").unlink()
    with sweeping(project, "rates"):
        wait_for(lambda: 0.01 in trained_rates(project))
    # as DVC leaves it that is killed while it writes
    (project / "build/sweeps/rates/project/.dvc/tmp/rwlock").write_text("")

    result = run()

    assert states(result) == ["done"] * 2
    rates = trained_rates(project)
    assert rates[:3] == [0.001, 0.001, 0.01]  # the one that was killed anew, the one that was done not
    assert rates.count(0.001) == 2
    assert experiments(project) == sorted(trial.name for trial in result.trials)


def test_trainer_that_is_killed_fails_its_trial_and_is_tried_again_by_the_next_run(project: Path) -> None:
    (project / "hold").touch()
    add_sweep(project, "rates", RATES.replace(", 0.1]", "]"))
    with sweeping(project, "rates") as process:
        wait_for(lambda: (project / "pid").exists())
        os.kill(int((project / "pid").read_text()), signal.SIGKILL)
        (project / "hold").unlink()
        assert process.wait() == 0

    assert "[1/2] failed" in (project / "sweep.out").read_text()
    assert states(read_sweep(RESULT_OF_RATES)) == ["failed", "done"]
    assert states(read_sweep(REPORT)) == ["failed", "done"]
    assert states(run()) == ["done"] * 2


def test_failed_trial_is_reported_with_its_words_and_left_alone_until_asked(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_sweep(project, "failing", FAILING)

    result = run("failing")

    assert states(result) == ["failed", "done"]
    assert (result.trials[0].exit_code, result.trials[0].words) == (3, "mgm-lora: the loss is no number at step 3")
    assert result.arms[0].best == result.trials[1].name
    assert "failed: mgm-lora: the loss is no number" in Path("reports/sweeps/failing.md").read_text()
    assert "1 failed, each with its last words in the report" in capsys.readouterr().out
    (child,) = [each for each in all_runs(project) if each.data.tags.get(EXPERIMENT_TAG) == result.trials[0].name]
    assert child.info.status == "FAILED"
    assert states(run("failing")) == ["failed", "done"]
    assert trained_rates(project).count(0.9) == 1
    run("failing", retry=True)
    assert trained_rates(project).count(0.9) == 2


def test_arm_without_any_trial_done_is_an_error(swept: Swept) -> None:
    nobody = ArmOutcome(arm="lora", best=None, ties=(), at_the_edge={})

    with pytest.raises(SweepError, match="no trial of lora came to its end"):
        sweep.check_winners(SweepResult(**{**dict(swept.result), "arms": (nobody,)}))


def test_trouble_of_the_machine_stops_the_sweep_and_leaves_the_trial_waiting(project: Path) -> None:
    (project / "full-disk").touch()

    with pytest.raises(TrialInterruptedError, match="no space left"):
        run()

    assert trained_rates(project) == [0.001]
    assert states(plan_sweep("rates").result) == ["waiting"] * 3


def test_store_that_is_away_costs_no_trial_and_gets_the_runs_from_the_next_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    params = project / "params.yaml"
    there = params.read_text()
    params.write_text(there.replace("sqlite:///mlflow.db", "http://127.0.0.1:9"))
    commit(project)

    assert states(run()) == ["done"] * 3
    assert "the sweep's runs are not in MLflow" in caplog.text
    assert "doesn't answer" in caplog.text
    assert all_runs(project) == []

    params.write_text(there)
    commit(project)
    assert states(run()) == ["done"] * 3
    assert len(all_runs(project)) == 4
    assert len(trained_rates(project)) == 3


def test_commit_of_something_else_changes_no_trial_and_one_of_the_code_changes_all(swept_project: Path) -> None:
    commit(swept_project)  # the notes and the reports
    assert states(plan_sweep("rates").result) == ["done"] * 3

    (swept_project / "trainer.py").write_text((swept_project / "trainer.py").read_text() + "\n# changed\n")
    with pytest.raises(SweepError, match=r"differs from it: trainer.py\. Commit it"):
        plan_sweep("rates")
    commit(swept_project)
    assert states(plan_sweep("rates").result) == ["waiting"] * 3


def test_data_that_changed_since_dvc_add_is_told(swept_project: Path) -> None:
    (swept_project / "data/pictures.txt").write_text("blue")

    with pytest.raises(SweepError, match=r"data\.dvc.*dvc add"):
        plan_sweep("rates")


def test_evaluated_trials_have_scores_and_their_training_is_not_run_again(swept_project: Path) -> None:
    result = run(evaluate=True)

    assert states(result) == ["done"] * 3
    assert result.asked == Asked(samples="s", base="b", evaluation={"metric": "exact"})
    assert run(evaluate=True) == result  # what was asked is known though nothing is run
    assert result.trials[0].scores == {"score": 0.5, "score_low": 0.4, "score_high": 0.6}
    assert trained_rates(swept_project) == [0.001, 0.01, 0.1]
    assert "50.0 % [40.0, 60.0]" in REPORT.with_suffix(".md").read_text()


def test_what_is_applied_is_restored_and_not_trained_again(
    swept_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("params.yaml").read_text().splitlines()
    run(apply=True)

    after = Path("params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [("    learning_rate: 3.0e-3", "    learning_rate: 0.01")]
    assert "take entries from them, and changed too: rank-4" in capsys.readouterr().out
    run_in(swept_project, ["env", f"MGM_LORA_STORE_FOLDER={swept_project}", "dvc", "repro", "train@lora-17"])
    assert trained_rates(swept_project) == [0.001, 0.01, 0.1]
    assert json.loads(Path("metrics/train/lora-17.json").read_text())["heldout_loss"] == 1.0


def test_best_at_the_end_of_the_grid_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_sweep(project, "full", FULL)

    result = run("full", apply=True)

    assert result.arms[0].at_the_edge == {"rate": "highest"}
    assert "The best rate is the highest that was tried" in capsys.readouterr().out
    assert read_settings(Path("params.yaml")).arms["full"].learning_rate == 0.005


def test_best_that_would_break_another_arm_is_not_written(swept: Swept, swept_project: Path) -> None:
    entries = read_entries(Path("params.yaml"))
    off = {"arms.lora.language_mlp": {"mode": "off"}}  # mlp-only takes it from lora, and has nothing else
    trials = [TrialResult(**{**dict(trial), "entries": off}) for trial in swept.result.trials]

    with pytest.raises(
        SettingsError, match=r"'params\.yaml' was not changed[^$]*mlp-only: every application point is off"
    ):
        sweep.apply_best(SweepResult(**{**dict(swept.result), "trials": tuple(trials)}))

    assert read_entries(Path("params.yaml")) == entries


def test_dry_run_lists_trials_and_runs_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.show("rates", evaluate=False, retry=False)

    told = capsys.readouterr().out
    assert "sweep rates: 3 trials, 0 done, 0 failed, 3 waiting" in told
    assert "0.001" in told
    assert not (project / "build").exists()
    assert not trained_rates(project)


def test_sweeps_are_listed_with_what_they_are_for(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.list_all()
    assert capsys.readouterr().out == "rates  three rates\n"

    with pytest.raises(SweepError, match="no sweep 'other', sweeps/ has rates"):
        run("other")


def test_folder_without_git_or_commit_is_refused_in_words(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    (bare / "sweeps").mkdir(parents=True)
    (bare / "sweeps/rates.yaml").write_text((project / "sweeps/rates.yaml").read_text())
    monkeypatch.chdir(bare)

    with pytest.raises(SweepError, match="is in no repository"):
        plan_sweep("rates")
    run_in(bare, ["git", "init", "-q"])
    with pytest.raises(SweepError, match="is no DVC project"):
        plan_sweep("rates")
    run_in(bare, ["dvc", "init", "-q"])
    with pytest.raises(SweepError, match="has no commit yet"):
        plan_sweep("rates")
