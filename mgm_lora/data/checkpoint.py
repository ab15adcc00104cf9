"""The checks as Great Expectations knows them: a suite and a checkpoint per file, and the Data Docs that they leave.

The context lives in memory and sends nothing. Great Expectations judges the same columns by the same bounds as
`checks.py`, which knows the single rows (Great Expectations takes 0.4 ms to tell one); a count on which the two don't
agree is an error of ours. It knows no rejects.
"""

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.expectation import Expectation

from mgm_lora.data.checks import Check, Consequence
from mgm_lora.data.judgement import FileSummary, ValidationSummary, checks_of
from mgm_lora.data.structure import FINE

# Findings shown per check. More would fill the pages: all of them are in the table of rejects.
_RESULT_FORMAT = {"result_format": "SUMMARY", "partial_unexpected_count": 20}


def run_checkpoint(
    tables: Mapping[str, pd.DataFrame], *, checks: Sequence[Check], summary: ValidationSummary, site: Path
) -> None:
    """Validates each file's table with a checkpoint and writes the Data Docs into the folder `site`."""
    context = _open_context(site, overview=_overview(checks, summary))
    source = context.data_sources.add_pandas("samples")
    run = RunIdentifier(run_name="validation", run_time=datetime.now(UTC))
    for file, table in tables.items():
        batch = source.add_dataframe_asset(file).add_batch_definition_whole_dataframe("all rows")
        suite = gx.ExpectationSuite(name=file, notes="Each failing sample is in rejects.csv, with its reasons.")
        for check in checks_of(table, checks):
            suite.add_expectation(_expectation(check))
        suite = context.suites.add(suite)
        definition = gx.ValidationDefinition(name=file, data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=file,
            validation_definitions=[context.validation_definitions.add(definition)],
            result_format=_RESULT_FORMAT,
        )
        result = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table}, run_id=run)
        (validation,) = result.run_results.values()
        _compare(validation, found=summary.files[file])
    with _errors_raised():
        context.build_data_docs()
    # 4 MB of pictures and fonts for templates that aren't used.
    shutil.rmtree(site / "static", ignore_errors=True)


def _open_context(site: Path, *, overview: Mapping[str, object]) -> EphemeralDataContext:
    pages = {"module_name": "mgm_lora.data.docs_pages"}
    docs = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": _escape(site.resolve())},
        "site_index_builder": {
            "class_name": "DefaultSiteIndexBuilder",
            "view": pages | {"class_name": "IndexView", "overview": overview},
        },
        "site_section_builders": {
            "expectations": {"view": pages | {"class_name": "PageView"}},
            "validations": {"view": pages | {"class_name": "PageView"}},
            "profiling": "None",
        },
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        data_docs_sites={"site": docs},
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


@contextmanager
def _errors_raised() -> Iterator[None]:
    """Raises what Great Expectations only logs when it can't make or write a page."""
    collector = _ErrorCollector()
    renderer = logging.getLogger("great_expectations.render")
    renderer.addHandler(collector)
    try:
        yield
    finally:
        renderer.removeHandler(collector)
    for error in collector.errors:
        raise error


class _ErrorCollector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        self.errors.append(error or RuntimeError(record.getMessage()))


def _escape(path: Path) -> str:
    return str(path).replace("$", r"\$")  # else Great Expectations puts a variable in its place


def _overview(checks: Sequence[Check], summary: ValidationSummary) -> dict[str, object]:
    """The table on the first page: a row per check, a column per file."""
    files = summary.files.values()
    totals = {
        "samples": [file.num_samples for file in files],
        "rejected": [file.num_rejects for file in files],
        "kept": [file.num_kept for file in files],
    }
    failing = [{**file.rejects, **file.warnings} for file in files]
    return {
        "files": list(summary.files),
        "rows": [
            *(
                {"name": name, "consequence": "", "numbers": numbers, "is_check": False}
                for name, numbers in totals.items()
            ),
            *(
                {
                    "name": check.name,
                    "consequence": check.consequence.value,
                    "numbers": [counts.get(check.name) for counts in failing],
                    "is_check": True,
                }
                for check in checks
            ),
        ],
    }


def _expectation(check: Check) -> Expectation:
    described: dict[str, Any] = {
        "column": check.column,
        "description": f"{check.name}: {check.sentence} Otherwise {check.consequence.value}.",
        "severity": "warning" if check.consequence is Consequence.WARN else "critical",
        "meta": {"check": check.name},
    }
    if check.is_numeric:
        return ExpectColumnValuesToBeBetween(min_value=check.low, max_value=check.high, **described)
    return ExpectColumnValuesToBeInSet(value_set=[FINE], **described)


def _compare(validation: ExpectationSuiteValidationResult, *, found: FileSummary) -> None:
    for one in validation.results:
        assert one.expectation_config is not None
        name = one.expectation_config.meta["check"]
        assert not one.exception_info.get("raised_exception"), one.exception_info
        ours = {**found.rejects, **found.warnings}[name]
        assert one.result["unexpected_count"] == ours, (
            f"{name}: {one.result['unexpected_count']} or {ours} failing rows?"
        )
