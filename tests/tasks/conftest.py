"""A small DVC project in a git repository of its own, with real stages that take no time."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo

_PIPELINE = """
stages:
  check:
    cmd: python copy.py data/raw.txt checked.txt
    deps: [copy.py, data/raw.txt]
    outs: [checked.txt]
  train:
    matrix:
      arm: [lora, full]
    cmd: python copy.py checked.txt trained-${item.arm}.txt
    deps: [copy.py, checked.txt]
    params: ["${item.arm}"]
    outs: ["trained-${item.arm}.txt"]
    meta: {card: true}
  report:
    cmd: python copy.py trained-lora.txt report.html metrics.json curve.csv
    deps: [trained-lora.txt, trained-full.txt]
    outs: [report.html]
    metrics:
      - metrics.json:
          cache: false
    plots: [curve.csv]
    meta: {card: small}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root, which is the current folder too. Nothing has been run in it."""
    root = tmp_path / "project"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    monkeypatch.chdir(root)
    with Repo.init() as repo, repo.config.edit() as config:
        config["core"]["analytics"] = False
        config["core"]["check_update"] = False
    (root / "data").mkdir()
    (root / "data" / "raw.txt").write_text("raw")
    with Repo() as repo:
        repo.add("data")
    (root / "params.yaml").write_text("lora: 1\nfull: 1\n")
    (root / "copy.py").write_text("import shutil, sys\nfor copy in sys.argv[2:]: shutil.copy(sys.argv[1], copy)\n")
    (root / "dvc.yaml").write_text(_PIPELINE)
    return root


@pytest.fixture
def one_stage(project: Path) -> Callable[[str], None]:
    """Replaces the pipeline by one stage `only`, which runs the given command and declares `out.txt`."""

    def write(command: str) -> None:
        (project / "dvc.yaml").write_text(
            f"stages:\n  only:\n    cmd: {command}\n    deps: [copy.py]\n    outs: [out.txt]\n"
        )

    return write
