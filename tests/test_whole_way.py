"""The whole way on a tiny base and real DVC: from pictures and questions to a registered adapter that answers, by the project's own dvc.yaml."""

import base64
import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .browser import needs_browser, open_browser, open_page
from .small_project import ROOT, environment, run_in, try_in, write_params
from .sweep_project import add_sweep, commit

ASK = [sys.executable, "-m", "mgm_lora", "ask", "data/pictures/heldout/0.png", "what?"]
SWEEP = """
about: a smaller rank
arms: [lora]
search: grid
evaluate: true
vary:
  rank: {entry: arm.rank, values: [2]}
"""
STAGES = {
    "validate",
    "plan@lora",
    "plan@full",
    "train@lora-17",
    "train@full-17",
    "merge",
    "evaluate-base",
    "evaluate@lora-17",
    "evaluate-merged",
    "evaluate@full-17",
    "compare",
    "register",
}


@pytest.fixture
def project(whole_project: Path) -> Path:
    """A user's clone after `dvc repro`."""
    return whole_project


def test_every_stage_leaves_what_it_says(project: Path) -> None:
    for path in (
        "artifacts/samples/train.parquet",
        "artifacts/trained/lora-17/adapter_model.safetensors",
        "artifacts/trained/full-17/model.safetensors",
        "artifacts/merged/model.safetensors",
        "artifacts/scores/merged/predictions.parquet",
        "artifacts/registered/manifest.json",
        "reports/comparison.html",
        "reports/validation/index.html",
        "mlflow.db",
    ):
        assert (project / path).is_file(), path
    proof = json.loads((project / "metrics" / "merge.json").read_text(encoding="utf-8"))
    assert proof["passed"]
    assert set(json.loads((project / "metrics" / "comparison.json").read_text(encoding="utf-8"))["arms"]) == {
        "base",
        "lora",
        "merged",
        "full",
    }


def test_again_nothing_runs(project: Path) -> None:
    assert _stages_run(run_in(project, ["dvc", "repro"])) == set()


def test_summary_prints_every_arm_and_where_to_look(project: Path) -> None:
    told = run_in(project, [sys.executable, "-m", "mgm_lora", "summary"])
    for word in ("base", "LoRA", "merged", "full", "reports/comparison.html", "make mlflow"):
        assert word in told


@needs_browser
def test_plots_are_drawn_without_a_network(project: Path) -> None:
    run_in(project, ["dvc", "plots", "show"])
    with open_browser() as browser, open_page(browser, project / "dvc_plots" / "index.html") as page:
        page.wait_for_selector("canvas >> nth=2")
        assert page.locator("canvas").count() == 3


def test_metrics_tell_what_changed(project: Path) -> None:
    told = json.loads(run_in(project, ["dvc", "metrics", "show", "--json"]))
    arms = told[""]["data"]["metrics/comparison.json"]["data"]["arms"]
    assert {"score", "loss", "known_loss", "trainable_parameters", "seconds_per_step"} <= arms["lora"].keys()


def test_ask_answers_alike_from_folder_and_registry(project: Path) -> None:
    ask = [sys.executable, "-m", "mgm_lora", "ask", "data/pictures/heldout/0.png", "what color is it?"]
    by_folder = run_in(project, [*ask, "--adapter", "artifacts/trained/lora-17", "--max-new-tokens", "8"])
    by_alias = run_in(project, [*ask, "--adapter", "models:/demo@challenger", "--max-new-tokens", "8"])
    assert by_folder == by_alias


def test_registered_version_predicts_as_the_adapter_scored(project: Path) -> None:
    code = (
        "import json, sys, mlflow, pandas as pd; mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/demo@challenger')\n"
        "rows = pd.DataFrame(json.loads(sys.argv[1])); print('ANSWERS ' + json.dumps(list(model.predict(rows))))\n"
    )
    import pandas as pd

    scored = pd.read_parquet(project / "artifacts" / "scores" / "lora-17" / "predictions.parquet")
    rows = scored[scored["set"] == "heldout"].head(3)
    files = [project / "data" / "pictures" / pictures[0] for pictures in rows["pictures"]]
    asked = {
        "picture": [base64.b64encode(file.read_bytes()).decode() for file in files],
        "question": list(rows["question"]),
    }
    told = run_in(project, [sys.executable, "-c", code, json.dumps(asked)])
    answers = json.loads(
        next(line for line in told.splitlines() if line.startswith("ANSWERS ")).removeprefix("ANSWERS ")
    )
    assert answers == list(rows["prediction"])


def test_changed_base_is_refused_in_one_line(project: Path) -> None:
    config = project / "data" / "base" / "config.json"
    before = config.read_bytes()
    config.unlink()  # it may be a link into DVC's cache
    config.write_bytes(before.replace(b'"max_length": 128', b'"max_length": 127'))
    try:
        done = try_in(
            project,
            [
                sys.executable,
                "-m",
                "mgm_lora",
                "ask",
                "data/pictures/heldout/0.png",
                "what?",
                "--adapter",
                "models:/demo@challenger",
            ],
        )
    finally:
        config.write_bytes(before)
    assert done.returncode == 3
    assert "was trained on the base" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        (["explain"], 2, "No such command 'explain'"),
        (["train", "--arm", "qlora"], 2, "no arm 'qlora': params.yaml has "),
        (["evaluate", "--model", "best"], 2, "no model 'best': there are base, merged, "),
        (["ask", "params.yaml", "what?"], 2, "is no picture"),
        (["ask", "data/pictures/heldout/0.png", "what?", "--adapter", "nowhere"], 2, "no TrainedAdapter at 'nowhere'"),
        (["ask", "data/pictures/heldout/0.png", "what?", "--adapter", "models:/demo@best"], 2, "best"),
        (["validate", "--params", "none.yaml"], 2, "no settings at 'none.yaml'"),
    ],
)
def test_bad_input_is_one_clear_line(project: Path, arguments: list[str], code: int, told: str) -> None:
    done = try_in(project, [sys.executable, "-m", "mgm_lora", *arguments])
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_base_is_told_before_any_work(project: Path) -> None:
    folder = _changed(project, {"base": {"model": "data/nothing"}})
    try:
        done = try_in(folder, [sys.executable, "-m", "mgm_lora", "train", "--arm", "lora"])
    finally:
        write_params(project)
    assert done.returncode == 2
    assert "no checkpoint at 'data/nothing'" in done.stderr or "no folder 'data/nothing'" in done.stderr


def test_help_teaches() -> None:
    told = run_in(ROOT, [sys.executable, "-m", "mgm_lora", "--help"])
    for word in ("dvc repro", "validate", "train", "merge", "evaluate", "compare", "register", "ask", "summary"):
        assert word in told


@pytest.mark.parametrize(
    "change, runs",
    [
        ({"comparison": {"retention_target": 0.9}}, {"compare", "register"}),
        ({"memory": {"budget_gib": 23.0}}, {"plan@lora", "plan@full"}),
        (
            {"arms": {"lora": {"rank": 2, "alpha": 4}}},
            STAGES - {"validate", "plan@full", "train@full-17", "evaluate-base", "evaluate@full-17"},
        ),
    ],
    ids=["of the report", "larger card", "rank of an arm"],
)
def test_a_changed_entry_runs_only_what_depends_on_it(project: Path, change: dict[str, Any], runs: set[str]) -> None:
    run_in(project, ["dvc", "repro"])
    write_params(project, change)
    try:
        assert _stages_run(run_in(project, ["dvc", "repro"])) == runs
    finally:
        write_params(project)


def test_two_ranks_under_deepspeed_train_what_one_process_does(project: Path) -> None:
    run_in(project, ["dvc", "repro"])
    alone = _read_json(project / "metrics" / "train" / "lora-17.json")
    before = _num_runs(project)
    step = {"micro_batch_size": 2, "engine": "deepspeed", "zero_stage": 2, "num_cards": 2}
    write_params(project, {"arms": {"lora": {"step": step}}})
    try:
        run_in(project, ["dvc", "repro", "train@lora-17"])
        together = _read_json(project / "metrics" / "train" / "lora-17.json")
        assert together["heldout_loss"] == pytest.approx(alone["heldout_loss"], rel=1e-3)
        assert together["step_memory_gib"] == pytest.approx(together["planned_memory_gib"], rel=0.05)
        config = _read_json(project / "artifacts" / "trained" / "lora-17" / "deepspeed.json")
        assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 2)
        assert _num_runs(project) == before + 1  # not one per rank
    finally:
        write_params(project)
        run_in(project, ["dvc", "repro"])


@pytest.fixture
def committed(project: Path, tmp_path: Path) -> Path:
    """A copy of the clone, up to date and committed, with a sweep."""
    run_in(project, ["dvc", "repro"])
    root = tmp_path / "committed"
    shutil.copytree(project, root, symlinks=True)
    with (root / ".gitignore").open("a") as ignored:  # DVC has put the data there
        ignored.write("__pycache__/\n/mlflow.db*\n/mlartifacts/\n/build/\n")
    add_sweep(root, "ranks", SWEEP)
    commit(root)
    return root


def test_trial_of_a_sweep_is_a_point_of_the_next_report(committed: Path) -> None:
    root = committed

    run_in(root, [sys.executable, "-m", "mgm_lora", "sweep", "ranks"])

    assert _read_json(root / "sweeps/results/ranks.json")["arms"][0]["best"]
    assert _stages_run(run_in(root, ["dvc", "repro"])) == {"compare", "register"}
    told = (root / "reports/comparison.md").read_text(encoding="utf-8")
    assert "1 trial of ranks, trained with seed 17: the same base, samples and questions as the arms." in told
    assert "| LoRA | rank 2 | ranks, best by loss | " in told
    page = (root / "reports/comparison.html").read_text(encoding="utf-8")
    assert page.count("<title>LoRA, rank 2: ") == 2  # over memory, and over parameters


def test_killed_sweep_goes_on_from_its_trials_checkpoint(committed: Path) -> None:
    """Long enough that the kill meets a training that has a checkpoint, and most of its way before it."""
    write_params(committed, {"training": {"num_epochs": 40, "evaluations": 2, "checkpoints": 20}})
    add_sweep(committed, "ranks", SWEEP.replace("evaluate: true", "evaluate: false"))
    commit(committed)
    sweep = [sys.executable, "-m", "mgm_lora", "sweep", "ranks"]
    checkpoints = committed / "build/sweeps/ranks/project/build/checkpoints"
    with (committed.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(sweep, cwd=committed, env=environment(), stdout=log, stderr=log)
    try:
        while not list(checkpoints.glob("*/checkpoint-*/digests.json")):
            assert process.poll() is None, (committed.parent / "killed.log").read_text()[-3000:]
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()

    told = run_in(committed, sweep)

    begun = re.search(r"it goes on from step (\d+)", told)
    assert begun, told[-3000:]
    assert int(begun[1]) > 0
    assert "1 done, 0 failed, 0 waiting" in told


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _num_runs(project: Path) -> int:
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as store:
        return int(store.execute("select count(*) from runs").fetchone()[0])


def _changed(project: Path, change: dict[str, Any]) -> Path:
    write_params(project, change)
    return project


def _stages_run(told: str) -> set[str]:
    return {line.split("'")[1] for line in told.splitlines() if line.startswith("Running stage")}
