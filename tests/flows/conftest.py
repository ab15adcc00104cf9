"""A Prefect server for the session, and a small DVC project that the pipeline has been run in once."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from PIL import Image
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.pipeline import pipeline

_PIPELINE = """
stages:
  prepare:
    cmd: python stage.py prepare prepared.txt
    deps: [source.txt, stage.py]
    outs: [prepared.txt]
  train:
    matrix:
      arm: [lora, full]
    cmd: python stage.py ${item.arm} ${item.arm}.txt
    deps: [prepared.txt]
    params:
      - params.json: ["${item.arm}"]
    outs: ["${item.arm}.txt"]
    metrics:
      - "${item.arm}.json":
          cache: false
  report:
    cmd: python stage.py report
    deps: [lora.txt, full.txt]
    outs: [docs, docs.html, picture.png]
    plots: [curve.csv]
"""
_STAGE = """
import json, pathlib, shutil, sys
name = sys.argv[1]
print(f'hello from {name}')
meddling = pathlib.Path(f'{name}-meddles.py')
if meddling.exists():
    exec(meddling.read_text())
value = json.loads(pathlib.Path('params.json').read_text()).get(name, 0)
if value < 0:
    sys.exit(f'{name} met a negative value')
if name == 'report':
    pathlib.Path('docs').mkdir(exist_ok=True)
    pathlib.Path('docs/index.html').write_text('<p>docs')
    pathlib.Path('docs.html').write_text('<p>report')
    pathlib.Path('curve.csv').write_text('step,loss\\n1,0.5\\n2,0.25\\n')
    shutil.copy('source.png', 'picture.png')
else:
    pathlib.Path(sys.argv[2]).write_text(f'{name} {value}')
    pathlib.Path(f'{name}.json').write_text(json.dumps({'score': {'value': 0.75, 'num_samples': value}}))
"""


@dataclass(frozen=True)
class Run:
    """A project that the pipeline was run in, and how that ended."""

    root: Path
    state: State[Any]


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server of our own on loopback, with a home of its own; nothing of the user's Prefect is touched."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("prefect")
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("DO_NOT_TRACK", "1")
        updates = {PREFECT_HOME: home, PREFECT_SERVER_ANALYTICS_ENABLED: False}
        with temporary_settings(updates), prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="session")
def first_run(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Not to be changed: take `project` for that."""
    root = _make_project(tmp_path_factory.mktemp("first") / "project")
    with chdir(root):
        return Run(root=root, state=pipeline(return_state=True))


@pytest.fixture
def project(first_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project in which everything is up to date; it is the current folder too."""
    root = Path(shutil.copytree(first_run.root, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return root


def _make_project(root: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    with Repo.init(str(root)) as repo, repo.config.edit() as config:
        config["core"]["analytics"] = False
        config["core"]["check_update"] = False
    (root / "dvc.yaml").write_text(_PIPELINE)
    (root / "stage.py").write_text(_STAGE)
    (root / "source.txt").write_text("source")
    (root / "params.json").write_text('{"lora": 1, "full": 1}')
    Image.new("RGB", (4, 4), "red").save(root / "source.png")
    return root
