"""The report holds all it shows, says the verdict, and runs in a browser."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mgm_lora.evaluation.comparison import compare
from mgm_lora.evaluation.formatting import unbroken
from mgm_lora.evaluation.predictions import read_predictions, write_predictions
from mgm_lora.evaluation.report import write_report
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.settings import ComparisonSettings, EvaluationSettings

MakeRun = Callable[..., ComparisonSources]
WriteReport = Callable[[ComparisonSources], Path]
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_LOADING = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}


class _Reader(HTMLParser):
    """Gathers what a page loads, its ids, and whether its elements are closed in order."""

    _VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in _LOADING]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def report(
    evaluation: EvaluationSettings, comparison_settings: ComparisonSettings, pictures: Path, tmp_path: Path
) -> WriteReport:
    def write(sources: ComparisonSources) -> Path:
        comparison = compare(sources, evaluation=evaluation, comparison=comparison_settings)
        destination = tmp_path / "reports/comparison.html"
        write_report(comparison, pictures=pictures, destination=destination)
        assert unbroken(comparison.verdict.sentence) in destination.read_text(encoding="utf-8")
        return destination

    return write


def test_page_loads_nothing_from_anywhere(make_run: MakeRun, report: WriteReport) -> None:
    text = report(make_run()).read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.loaded
    assert all(target.startswith(("data:image/", "#")) for target in reader.loaded)
    assert {target[1:] for target in reader.loaded if target.startswith("#")} <= set(reader.ids)
    assert not {"link", "iframe", "object", "embed"} & set(reader.tags)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 5_000_000


def test_page_shows_every_arm_type_and_picture(make_run: MakeRun, report: WriteReport) -> None:
    text = report(make_run()).read_text(encoding="utf-8")
    for words in (
        "LoRA",
        "merged",
        "question only",
        "colour, 60 questions",
        "shape, 60 questions",
        "Training loss",
        "Held-out loss",
    ):
        assert words in text
    assert text.count('<li class="card"') == 12
    assert text.count("data:image/png;base64,") == 12
    assert "+5.0 pp" in text
    assert "3.1 %" in text
    assert "cd" * 32 in text


def test_same_inputs_give_the_same_page(make_run: MakeRun, report: WriteReport) -> None:
    sources = make_run()
    first = report(sources).read_bytes()
    assert report(sources).read_bytes() == first


def test_answers_cannot_inject_markup(make_run: MakeRun, report: WriteReport) -> None:
    sources = make_run()
    for arm in ("base", "lora-17", "merged", "full-17"):
        path = sources.scores / arm / "predictions.parquet"
        evil = [replace(item, question='<script>alert("x")</script>') for item in read_predictions(path)]
        write_predictions(path, [replace(item, prediction="<img src=x>") for item in evil])
    text = report(sources).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;img src=x&gt;" in text


@pytest.mark.parametrize(
    "num_right, with_known, words",
    [
        ({"full": (0, 0)}, True, "No ratio can be given"),
        ({"lora": (60, 40), "merged": (60, 40), "full": (60, 40)}, True, "both right: 12 of 120 shown"),
        ({}, False, "Not measured"),
    ],
)
def test_page_stands_where_a_part_is_missing(
    make_run: MakeRun,
    report: WriteReport,
    num_right: dict[str, tuple[int, int]],
    with_known: bool,
    words: str,
) -> None:
    text = report(make_run(num_right=num_right, with_known=with_known)).read_text(encoding="utf-8")
    assert words in text


@pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_page_filters_its_gallery_in_a_browser_without_complaint(
    make_run: MakeRun, report: WriteReport, tmp_path: Path
) -> None:
    page = report(make_run())
    text = page.read_text(encoding="utf-8")
    click = """<script>document.querySelector('[data-tag="lora-wrong"]').click()</script>"""
    page.write_text(text.replace("</body>", f"{click}</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        str(_CHROMIUM),
        *flags.split(),
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    assert "hidden" in _filters(text)
    assert "hidden" not in _filters(done.stdout)  # the script ran, under the page's own security policy
    cards = re.findall(r'<li class="card" data-tags="([^"]*)"( hidden)?', done.stdout)
    assert len(cards) == 12
    assert 0 < sum(not hidden for _, hidden in cards) < 12
    assert all(("lora-wrong" in tags) == (not hidden) for tags, hidden in cards)


def _filters(text: str) -> str:
    found = re.search(r'<div class="filters"([^>]*)>', text)
    assert found
    return found.group(1)
