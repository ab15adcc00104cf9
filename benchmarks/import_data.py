"""What importing a million rows takes: memory at a hundred thousand and at a million rows, and the picture scan against bare decoding on all cores.

Made-up photographs of usual size, and a CSV whose rows ask about them; rows, scan, split, checks and Great Expectations
are the import's own. A word counts as a token: a real tokenizer's time depends on the base and is not in here.
"""

import csv
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.findings import Findings, Goal, Table, median_and_range
from benchmarks.machine import resident_bytes
from benchmarks.running import in_own_process
from mgm_lora.data.importing.importer import ImportRequest, Places, import_data
from mgm_lora.data.picture_facts import FactStore
from mgm_lora.data.picture_scan import scan_store
from mgm_lora.data.tokens import TokenCounts
from mgm_lora.settings import DataSettings, ValidationSettings

NUM_PICTURES, SIZE, QUALITY = 2000, (640, 480), 90
NUM_ROWS = (100_000, 1_000_000)
NUM_ROUNDS = 5
MOST_GROWTH_MIB, LEAST_SHARE = 256.0, 0.9
MIB = 2**20
_TASK = 16
_SEED = 17


class _Run(NamedTuple):
    num_rows: int
    seconds: float
    peak_bytes: int
    """More than before the import began, at the most."""


def measure() -> Findings:
    """Memory and time of whole imports, and the scan's share of bare decoding."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_pictures(folder / "pictures")
        bare, scanned = _decode_both(folder / "pictures")
        runs = [in_own_process(_import_rows, folder, num_rows) for num_rows in NUM_ROWS]
    shares = [one / other for one, other in zip(bare, scanned, strict=True)]
    growth = (runs[1].peak_bytes - runs[0].peak_bytes) / MIB
    return Findings(
        title="Importing own data",
        goals=(
            Goal(f"more memory for {NUM_ROWS[1]:,} rows than for {NUM_ROWS[0]:,}", growth, MOST_GROWTH_MIB, "MiB"),
            Goal("time of bare decoding, over the scan's at most", 1 / statistics.median(shares), 1 / LEAST_SHARE, ""),
        ),
        tables=(_pictures_table(bare, scanned, shares), _rows_table(runs)),
        notes=(
            f"{NUM_PICTURES:,} JPEG pictures of {SIZE[0]} x {SIZE[1]} pixels; rows ask about them in turn; tokens are words.",
            f"A row more takes {growth * MIB / (NUM_ROWS[1] - NUM_ROWS[0]):.0f} bytes at the peak.",
            "Facts on pictures lie on disk (SQLite), so that pictures that differ take no memory either.",
        ),
    )


def _pictures_table(bare: Sequence[float], scanned: Sequence[float], shares: Sequence[float]) -> Table:
    cores = len(os.sched_getaffinity(0))
    rows = (
        ("bare: open, decode", median_and_range(NUM_PICTURES / seconds for seconds in bare)),
        (
            "scan: also path, size, frames, one colour, digest of the file, points, store",
            median_and_range(NUM_PICTURES / seconds for seconds in scanned),
        ),
        ("scan's speed of the bare one's", median_and_range(shares)),
    )
    return Table(
        f"Pictures a second, {cores} threads on {cores} cores, median (range) of {NUM_ROUNDS} interleaved rounds:",
        ("", "found"),
        rows,
    )


def _rows_table(runs: Sequence[_Run]) -> Table:
    rows = tuple(
        (
            f"{run.num_rows:,}",
            f"{run.seconds:.0f}",
            f"{run.peak_bytes / MIB:.0f}",
            f"{1e6 * run.seconds / run.num_rows:.0f}",
        )
        for run in runs
    )
    return Table(
        "A whole import from CSV, pictures, checks and pages included:",
        ("rows", "seconds", "peak over the start, MiB", "µs a row"),
        rows,
    )


def _make_pictures(folder: Path) -> None:
    """Soft shapes with a camera's noise, about as large as photographs are."""
    folder.mkdir()
    for number in range(NUM_PICTURES):
        random = np.random.default_rng(number)
        shapes = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
            SIZE, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(shapes).astype(np.int16) + random.integers(-12, 13, (*SIZE[::-1], 1), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=QUALITY)


def _decode_both(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of every round."""
    names = [f"{number}.jpg" for number in range(NUM_PICTURES)]
    bare, scanned = [], []
    for number in range(NUM_ROUNDS + 1):
        one, other = _seconds(lambda: _decode(names, folder)), _seconds(lambda: _scan(names, folder))
        if number:  # the first round brings the files into memory
            bare.append(one)
            scanned.append(other)
    return bare, scanned


def _decode(names: Sequence[str], folder: Path) -> None:
    def run(some: Sequence[str]) -> None:
        for name in some:
            with Image.open(folder / name) as picture:
                picture.load()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run, [names[start : start + _TASK] for start in range(0, len(names), _TASK)]))


def _scan(names: Sequence[str], folder: Path) -> None:
    store = FactStore()
    store.add_names(names)
    scan_store(store, folder=folder, min_side=8, max_pixels=10**8, num_workers=0)


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _import_rows(folder: Path, num_rows: int) -> _Run:
    source = folder / f"{num_rows}.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "question", "answer"))
        writer.writerows(
            (f"{n % NUM_PICTURES}.jpg", f"what is number {n}?", f"answer {n % 97}") for n in range(num_rows)
        )
    target = folder / f"imported-{num_rows}"
    places = Places(target / "data", data_docs=target / "docs", contact_sheet=target / "sheet.png")
    request = ImportRequest(source, name="own", pictures=folder / "pictures", seed=_SEED, link=True)
    with _watched() as peak:
        seconds = _seconds(lambda: _import(request, places))
    return _Run(num_rows, seconds, peak_bytes=peak[0])


def _import(request: ImportRequest, places: Places) -> None:
    validation = ValidationSettings(
        max_reject_share=0.0, min_picture_side=8, max_picture_pixels=10**8, min_label_share=0.0, num_workers=0
    )
    nowhere = Path("nowhere")
    data = DataSettings(pictures=nowhere, train=nowhere, heldout=nowhere, max_length=2048)
    import_data(request, places=places, data=data, validation=validation, measure=_count_words)


def _count_words(turns: Sequence[tuple[str, str]]) -> TokenCounts:
    learned = sum(len(text.split()) for role, text in turns if role == "gpt")
    return TokenCounts(sum(len(text.split()) for _, text in turns), learned, learned, problem="")


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Holds the most bytes of this process over those at the start, looked at 50 times a second."""
    start, peak, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident_bytes() - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
