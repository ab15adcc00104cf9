"""Runs one benchmark in a process of its own, so that it finds nobody else's memory and takes nobody down with it. It writes nothing."""

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.findings import Findings


def run_benchmark(name: str) -> Findings:
    """What `benchmarks.NAME` finds; its error is raised here, and BrokenProcessPool where it was killed."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, name).result()


def _measure(name: str) -> Findings:
    found = importlib.import_module(f"benchmarks.{name}").measure()
    assert isinstance(found, Findings)
    return found
