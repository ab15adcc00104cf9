"""Which files are told as not in the commit."""

import subprocess
from pathlib import Path

import pytest

from mgm_lora.errors import ArtifactError
from mgm_lora.registry.source_state import SourceState, read_source_state

LOCK = Path("dvc.lock")
_LOCK_TEXT = """
stages:
  train:
    deps: [{path: code}, {path: data, md5: 1.dir}, {path: /elsewhere}, {path: ../outside}]
    outs: [{path: made/metrics/train.json}]
  compare:
    deps: [{path: made/metrics}]
    outs: [{path: report.html}]
"""


def git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=someone", "-c", "user.email=someone@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one commit, everything as in it."""
    monkeypatch.chdir(tmp_path)
    files = {"code/a.py": "1", "code/b.py": "1", "params.yaml": "a: 1", "data.dvc": "outs: []", "notes.txt": "n"}
    for name, text in {**files, "dvc.lock": _LOCK_TEXT, ".gitignore": "/data\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "all")
    return tmp_path


def test_clean_tree_is_its_commit(repository: Path) -> None:
    assert read_source_state(LOCK) == SourceState(commit=git("rev-parse", "HEAD"))


def test_what_stages_read_and_differs_is_told(repository: Path) -> None:
    (repository / "code/a.py").write_text("2")
    (repository / "code/b.py").unlink()
    (repository / "code/new.py").write_text("1")
    (repository / "params.yaml").write_text("a: 2")
    (repository / "data.dvc").write_text("outs: [1]")
    state = read_source_state(LOCK)
    assert state.changed == ("code/a.py", "code/new.py", "data.dvc", "params.yaml")
    assert state.removed == ("code/b.py",)


def test_what_no_stage_reads_or_what_stages_make_is_nobodys_business(repository: Path) -> None:
    for name in ("notes.txt", ".env", "made/metrics/train.json", "data/1.png", "report.html"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("changed")
    assert read_source_state(LOCK) == SourceState(commit=git("rev-parse", "HEAD"))


def test_project_below_the_repositorys_root_is_told_by_its_own_paths(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = repository / "project"
    (project / "code").mkdir(parents=True)
    (project / "dvc.lock").write_text(_LOCK_TEXT)
    (project / "code/a.py").write_text("1")
    monkeypatch.chdir(project)
    assert read_source_state(LOCK).changed == ("code/a.py",)


def test_outside_of_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_source_state(LOCK) == SourceState(commit=None)


def test_broken_lock_is_told(repository: Path) -> None:
    LOCK.write_text("stages: {train: {deps: [what]}}")
    with pytest.raises(ArtifactError, match=r"'dvc\.lock' is no lock of DVC's"):
        read_source_state(LOCK)
