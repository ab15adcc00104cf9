"""Backups are made of real stores, damaged, and restored."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import psycopg
import pytest

from flows.backup import MANIFEST, back_up, main, restore
from flows.databases import NAMES, VARIABLE, make_databases
from flows.started import FOLDER, Started, write_started
from mgm_lora.errors import ArtifactError, ServiceError

from ..mlflow_store import forget_store
from ..postgresql import needs_postgresql, postgresql
from ..small_disk import needs_mount, small_disk


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[Path]:
    """A store with one run and its artifact; the current folder."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_ARTIFACTS_DESTINATION", raising=False)
    shutil.copy(empty_store, "mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")  # absolute: MLflow keeps an opened store by its address
    experiment = client.create_experiment("ours", artifact_location=str(root / "mlartifacts"))
    client.log_text(client.create_run(experiment).info.run_id, "words", "words.txt")
    yield root
    forget_store()


def num_runs(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])


def test_lost_record_and_artifacts_come_back(project: Path) -> None:
    back_up(Path("../saved"))
    (words,) = project.glob("mlartifacts/**/words.txt")
    words.unlink()
    with closing(sqlite3.connect("mlflow.db")) as connection, connection:
        connection.execute("DELETE FROM runs")

    restore(Path("../saved"))

    assert num_runs(project / "mlflow.db") == 1
    assert words.read_text() == "words"
    (aside,) = (project / "build").glob("before-restore-*")
    assert num_runs(aside / "mlflow.db") == 0  # what lay here is not lost either


def test_database_that_is_being_written_is_copied_whole(project: Path) -> None:
    with closing(sqlite3.connect("mlflow.db")) as server:
        server.execute("PRAGMA journal_mode = WAL")
        server.execute("CREATE TABLE late (word TEXT)")
        server.execute("INSERT INTO late VALUES ('written')")
        server.commit()  # in the -wal file alone
        server.execute("INSERT INTO late VALUES ('being written')")
        back_up(Path("../saved"))
    assert not list(Path("../saved").glob("*-wal"))
    with closing(sqlite3.connect("../saved/mlflow.db")) as copy:
        assert copy.execute("SELECT word FROM late").fetchall() == [("written",)]
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_backup_that_was_changed_or_cut_is_refused_before_anything_is_touched(project: Path) -> None:
    back_up(Path("../saved"))
    before = (project / "mlflow.db").read_bytes()
    (words,) = Path("../saved").glob("mlartifacts/**/words.txt")
    words.write_text("others")
    with pytest.raises(ArtifactError, match=r"words\.txt"):
        restore(Path("../saved"))
    Path("../saved", MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="is no backup"):
        restore(Path("../saved"))
    assert (project / "mlflow.db").read_bytes() == before


def test_restore_is_refused_while_services_run(project: Path) -> None:
    back_up(Path("../saved"))
    FOLDER.mkdir(parents=True)
    write_started({"mlflow": Started.of(os.getpid(), address="here")})
    with pytest.raises(ServiceError, match="mlflow still runs"):
        restore(Path("../saved"))


def test_folder_that_is_there_and_nothing_to_copy_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backup", "."]) == 4
    assert "is there already" in capsys.readouterr().err
    (project / "mlflow.db").unlink()
    assert main(["backup", "../saved"]) == 4
    assert "nothing to back up" in capsys.readouterr().err
    assert not list(project.parent.glob("*saved*"))


@needs_mount
def test_full_disk_leaves_no_half_backup(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk:
        assert main(["backup", str(disk.folder / "saved")]) == 4
        assert "Is there space and permission?" in capsys.readouterr().err
        assert not list(disk.folder.iterdir())


@needs_postgresql
@pytest.mark.skipif(shutil.which("pg_dump") is None, reason="no pg_dump on the path")
def test_postgresql_is_dumped_and_restored(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgresql() as server:
        monkeypatch.setenv(VARIABLE, server)
        make_databases()
        with psycopg.connect(f"{server}/{NAMES[0]}") as connection:
            connection.execute("CREATE TABLE flow_run AS SELECT 7 AS id")
        back_up(Path("../saved"))
        with psycopg.connect(f"{server}/{NAMES[0]}") as connection:
            connection.execute("UPDATE flow_run SET id = 8")
        restore(Path("../saved"))
        with psycopg.connect(f"{server}/{NAMES[0]}") as connection:
            assert connection.execute("SELECT id FROM flow_run").fetchall() == [(7,)]
    password = server.split(":")[2].partition("@")[0].encode()
    assert not [path for path in Path("../saved").rglob("*") if path.is_file() and password in path.read_bytes()]
