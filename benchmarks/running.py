"""Runs one benchmark in a process of its own, so that it finds nobody else's memory and takes nobody down with it. It writes nothing."""

import importlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from benchmarks.findings import Findings

_Parameters = ParamSpec("_Parameters")
_Found = TypeVar("_Found")


def run_benchmark(name: str) -> Findings:
    """What `benchmarks.NAME` finds; its error is raised here, and BrokenProcessPool where it was killed."""
    return in_own_process(_measure, name)


def in_own_process(
    function: Callable[_Parameters, _Found], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Found:
    """What a function of a module returns; raises as `run_benchmark` does."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _measure(name: str) -> Findings:
    found = importlib.import_module(f"benchmarks.{name}").measure()
    assert isinstance(found, Findings)
    return found
