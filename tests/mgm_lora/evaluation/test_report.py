"""The report holds all it shows, says the verdict, and runs in a browser."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator

from mgm_lora.evaluation.comparison import compare
from mgm_lora.evaluation.formatting import unbroken
from mgm_lora.evaluation.metrics import METRICS_TOLD
from mgm_lora.evaluation.predictions import read_predictions, write_predictions
from mgm_lora.evaluation.report import write_report
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.settings import ComparisonSettings, EvaluationSettings

from ...browser import DESK, PHONE, needs_browser, open_page, overflows, worst_contrast
from .sweep_results import ASKED, done, failed, write_result

MakeRun = Callable[..., ComparisonSources]
WriteReport = Callable[[ComparisonSources], Path]
_TITLE_UNDER_MIDDLE = """dot => {
  const box = dot.getBoundingClientRect();
  const met = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return met.closest(".trial")?.querySelector("title").textContent;
}"""
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
        arms = tuple(sorted({path.name.rpartition("-")[0] for path in sources.trained.iterdir()} - {"lora", "full"}))
        settings = comparison_settings.model_copy(update={"arms": (*comparison_settings.arms, *arms)})
        comparison = compare(sources, evaluation=evaluation, comparison=settings)
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


@needs_browser
def test_page_filters_its_gallery(make_run: MakeRun, report: WriteReport, browser: Browser) -> None:
    path = report(make_run())
    assert "hidden" in _filters(path.read_text(encoding="utf-8")), "without scripts there are no buttons"
    with open_page(browser, path) as page:
        cards = page.locator(".card")
        assert cards.count() == 12
        page.get_by_role("button", name="LoRA wrong").click()
        shown = page.locator(".card:not([hidden])")
        assert 0 < shown.count() < 12
        assert all("lora-wrong" in str(tags) for tags in _attributes(shown, "data-tags"))
        page.locator('[data-filter="wrong"]').select_option("full")
        assert page.locator(".filters output").inner_text() == f"{shown.count()} of 12"
        assert not any("full" in str(right).split() for right in _attributes(shown, "data-right"))
        page.get_by_role("button", name="All").click()
        page.locator('[data-filter="wrong"]').select_option("")
        page.locator('[data-filter="type"]').select_option("emoji")
        assert set(_attributes(shown, "data-type")) == {"emoji"}


@needs_browser
def test_arms_can_be_hidden_on_the_loss_charts(make_run: MakeRun, report: WriteReport, browser: Browser) -> None:
    with open_page(browser, report(make_run())) as page:
        names = page.locator('#loss .legend [data-arm="full"]')
        names.first.press("Enter")
        assert [name.get_attribute("aria-pressed") for name in names.all()] == ["false", "false"]
        lines = page.locator('#loss polyline[data-arm="full"]').all()
        assert [line.is_visible() for line in lines] == [False, False]


@needs_browser
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_window_and_can_be_read(
    make_run: MakeRun, report: WriteReport, browser: Browser, size: tuple[int, int], scheme: Literal["light", "dark"]
) -> None:
    with open_page(browser, report(make_run(more_arms=("rank-4", "dora"))), size=size) as page:
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
        assert overflows(page) == 0
        contrast, words = worst_contrast(page)
        assert contrast >= 4.5, words  # WCAG 2.1, 1.4.3


def test_failed_arms_are_told_on_top_and_in_the_table(
    make_run: MakeRun,
    evaluation: EvaluationSettings,
    comparison_settings: ComparisonSettings,
    pictures: Path,
    tmp_path: Path,
) -> None:
    settings = comparison_settings.model_copy(update={"arms": ("lora", "full", "dora")})
    comparison = compare(make_run(), evaluation=evaluation, comparison=settings, allow_failed=True)
    write_report(comparison, pictures=pictures, destination=tmp_path / "report.html")
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "dora" in text
        assert "has no scores to compare" in text
        assert "ailed" in text


def test_page_says_what_an_answer_is_worth(
    make_run: MakeRun,
    evaluation: EvaluationSettings,
    comparison_settings: ComparisonSettings,
    pictures: Path,
    tmp_path: Path,
) -> None:
    by_anls = evaluation.model_copy(update={"metric": "anls"})
    comparison = compare(make_run(scored_by=by_anls), evaluation=by_anls, comparison=comparison_settings)
    assert comparison.verdict.sentence.startswith("LoRA scores 90.0 % [")
    write_report(comparison, pictures=pictures, destination=tmp_path / "report.html")
    assert METRICS_TOLD["anls"] in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_markdown_holds_the_same_figures(make_run: MakeRun, report: WriteReport) -> None:
    text = report(make_run(more_arms=("rank-4",))).with_suffix(".md").read_text(encoding="utf-8")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables[:7]} == {8}
    assert "| LoRA | 90.0 % [" in text
    assert "| rank-4 |" in text
    assert "+5.0 pp [" in text
    assert "\n\n\n" not in text


@pytest.fixture
def swept(make_run: MakeRun, evaluation: EvaluationSettings) -> ComparisonSources:
    """The run, with a sweep that was asked the same: two trials done, one failed."""
    sources = make_run()
    assert sources.sweeps
    asked = ASKED.model_copy(update={"evaluation": evaluation.model_dump(mode="json")})
    trials = [done(rank=8, score=0.7, step_memory_gib=1.2), done(rank=64, score=0.9, loss=0.9, step_memory_gib=1.35)]
    write_result(sources.sweeps, [*trials, failed(rank=4, words="mgm-lora: <b>no number</b>")], asked=asked)
    return sources


@needs_browser
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_trials_are_hollow_points_that_say_what_they_are(
    swept: ComparisonSources,
    report: WriteReport,
    browser: Browser,
    size: tuple[int, int],
    scheme: Literal["light", "dark"],
) -> None:
    with open_page(browser, report(swept), size=size) as page:
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
        for chart in page.locator("#cost .plot").all():
            dots = chart.locator(".trial .dot")
            assert [dot.evaluate("dot => getComputedStyle(dot).fill") for dot in dots.all()] == ["none", "none"]
            assert "trials of sweeps, which the table below lists: 2" in str(
                chart.locator("svg[role=img]").get_attribute("aria-label")
            )
            for dot in dots.all():
                dot.scroll_into_view_if_needed()
                # what the pointer meets in the middle of a point, though that is empty
                assert "LoRA, rank" in str(dot.evaluate(_TITLE_UNDER_MIDDLE))
        assert page.locator("#cost .trials tbody tr").count() == 2
        assert overflows(page) == 0
        contrast, words = worst_contrast(page)
        assert contrast >= 4.5, words


def test_trials_that_are_left_out_are_told_in_both_forms(swept: ComparisonSources, report: WriteReport) -> None:
    path = report(swept)
    page, markdown = path.read_text(encoding="utf-8"), path.with_suffix(".md").read_text(encoding="utf-8")

    assert "1 trial of ranks: failed (LoRA, rank 4: mgm-lora: &lt;b&gt;no number&lt;/b&gt;)" in page
    assert "- 1 trial of ranks: failed (LoRA, rank 4: mgm-lora: <b>no number</b>)" in markdown
    assert (
        "| LoRA | rank 64 | ranks, best by loss | 90.0 % [85.0, 95.0] | 0.9 | 64,000 | 1.35 GiB | 2.00 min |"
        in markdown
    )
    assert "joins the arms and trials that no other beats" in page
    assert "\n\n\n" not in markdown


def test_without_sweeps_nothing_is_said_of_trials(make_run: MakeRun, report: WriteReport) -> None:
    path = report(make_run())

    assert "rials of sweeps" not in path.read_text(encoding="utf-8")
    assert "rials of sweeps" not in path.with_suffix(".md").read_text(encoding="utf-8")


def _attributes(cards: Locator, name: str) -> list[str | None]:
    return [card.get_attribute(name) for card in cards.all()]


def _filters(text: str) -> str:
    found = re.search(r'<div class="filters"([^>]*)>', text)
    assert found
    return found.group(1)
