"""The table that a run ends with."""

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from mgm_lora.errors import ArtifactError
from mgm_lora.evaluation.comparison import compare, write_comparison
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.evaluation.summary import COLUMNS, print_summary
from mgm_lora.settings import ComparisonSettings, EvaluationSettings

PLACES = {"report": "reports/comparison.html", "MLflow": "mlflow ui --backend-store-uri sqlite:///mlflow.db"}


@pytest.fixture
def metrics(
    make_run: Callable[..., ComparisonSources],
    evaluation: EvaluationSettings,
    comparison_settings: ComparisonSettings,
    tmp_path: Path,
) -> Path:
    comparison = compare(make_run(), evaluation=evaluation, comparison=comparison_settings)
    path = tmp_path / "metrics/comparison.json"
    write_comparison(comparison, metrics=path, plots=tmp_path / "plots")
    return path


def test_plain_table_has_one_line_per_arm_and_the_places(metrics: Path) -> None:
    output = StringIO()
    print_summary(metrics, places=PLACES, file=output)
    lines = output.getvalue().splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["arm", "base", "LoRA", "merged", "full", "question"]
    assert all(name in lines[0] for name in COLUMNS)
    assert "90.0 % [" in lines[2]
    assert "+5.0 pp [" in lines[2]
    assert lines[2].endswith("31,000 (3.1 %)      1.50 GiB     1.50 min  3.50 MiB")
    assert lines[1].split()[-5:] == ["–"] * 5
    assert "29.2 % [" in lines[5]
    assert "retention 94.7 %" in lines[7]
    assert lines[9:] == ["report  reports/comparison.html", f"MLflow  {PLACES['MLflow']}"]
    assert "\x1b" not in output.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_gets_a_drawn_table_with_whole_cells(
    metrics: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    output = StringIO()
    print_summary(metrics, places=PLACES, file=output)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
    assert plain != output.getvalue()
    assert "─" in plain
    assert max(len(line) for line in plain.splitlines()) <= width
    for words in ("base", "LoRA", "90.0 %", "+5.0 pp", "31,000", "(3.1 %)", "1.50 GiB", "1.50 min", "3.50 MiB"):
        assert words in plain
    assert len(re.findall(r"\[\d+\.\d, \d+\.\d\]", plain)) >= 5
    assert "reports/comparison.html" in plain


@pytest.mark.parametrize("content", [None, "no json", '{"arms": {"lora": {}}}', "[]"])
def test_without_a_comparison_the_stage_to_run_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "comparison.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match="dvc repro compare"):
        print_summary(path, places={}, file=StringIO())


def test_a_narrow_terminal_cuts_no_count_of_parameters(metrics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = json.loads(metrics.read_text())
    figures["arms"]["full"] |= {"trainable_parameters": 2_603_540_480, "size_on_disk_mib": 5758.5, "minutes": 1210.0}
    metrics.write_text(json.dumps(figures))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    output = StringIO()
    print_summary(metrics, places={}, file=output)
    assert "2,603,540,480" in output.getvalue()
    assert "merged" in output.getvalue()
