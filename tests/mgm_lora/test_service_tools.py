"""The services' commands hand over to the project's flows; what these do is tested with them (tests/flows)."""

from pathlib import Path

import pytest

from mgm_lora.cli import main


@pytest.mark.parametrize("command", [["up"], ["down"], ["services"], ["health"], ["backup", "x"], ["restore", "x"]])
def test_outside_of_a_project_is_one_error(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 4
    assert "run it in the root of the project" in capsys.readouterr().err


def test_arguments_and_exit_code_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").touch()
    (tmp_path / "flows" / "services.py").write_text(
        "import pathlib, sys\npathlib.Path('given').write_text(' '.join(sys.argv[1:]))\nsys.exit(7)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["up", "--mlflow-port", "5001"])
    assert ended.value.code == 7
    told = (tmp_path / "given").read_text()
    assert told == "up --host 127.0.0.1 --prefect-port 4200 --mlflow-port 5001 --pool gpu-24gb"
