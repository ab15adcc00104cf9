"""Runs benchmarks one after the other and writes what they find into RESULTS.md: `python -m benchmarks --help`.

Each runs in a process of its own, so that none finds another's memory; one that fails or is killed is named in the results, and the others go on.
Sections of benchmarks that were not asked for stay as they were, each with its own date and machine. It doesn't know what a benchmark measures.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.findings import as_markdown
from benchmarks.machine import describe_machine, today
from benchmarks.running import run_benchmark

BENCHMARKS = {
    "goals": "the peaks that the project promises, traced at MGM-2B's real size (3 minutes)",
    "lean_step": "our step against the plain way: time really taken at a middle size, traced peaks (3 minutes)",
    "padding": "padding and tokens a second of plain order, grouped and packed (4 minutes)",
    "believed": "what plans say against what real steps hold (some minutes)",
    "methods": "what every LoRA method holds: fresh, disabled, saved, merged, beside another (2 minutes)",
    "import_data": "a million rows imported: memory, and the picture scan against bare decoding (7 minutes)",
    "full_size": "steps of MGM-2B's real size, really run: needs 14 GB of free memory (7 minutes)",
}
RESULTS = Path(__file__).parent / "RESULTS.md"

_HEAD = """# What was measured

Made by `make bench`, section by section; not edited by hand. A goal was set before anything was measured, and stands in the table whether
it was reached or not. 1 GiB is 2^30 bytes.
"""
_SECTION = re.compile(r"^<!-- (\w+) -->$", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a benchmark failed; a goal that isn't reached is a result, not a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    names = options.names or list(BENCHMARKS)
    failed = []
    for name in names:
        print(f"{name}: {BENCHMARKS[name]}", flush=True)
        section, fine = _section(name)
        failed += [] if fine else [name]
        _put(options.results, name=name, section=section)
        print(section, flush=True)
    print(f"written: {options.results}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Runs benchmarks (all, if none is named) and writes their sections of RESULTS.md.\n\n"
        + "\n".join(f"  {name:<11}{about}" for name, about in BENCHMARKS.items()),
        epilog="Minutes are those of two CPU cores. On a CUDA card the same steps run there, and what its allocator had handed out\n"
        "goes into the tables.\n"
        "Example: python -m benchmarks goals lean_step",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="which ones, in this order")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write (default: %(default)s)")
    return parser


def _section(name: str) -> tuple[str, bool]:
    started = time.monotonic()
    try:
        findings = run_benchmark(name)
        title, body, fine = findings.title, as_markdown(findings), True
    except Exception as error:  # whatever it was: it goes into the results
        title, body, fine = name, f"**Failed**: {type(error).__name__}: {str(error).splitlines()[0]}", False
        print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
    seconds = time.monotonic() - started
    return f"## {title}\n\n{body}\n\n{today()}, {seconds:.0f} s; {describe_machine()}\n", fine


def _put(path: Path, *, name: str, section: str) -> None:
    """Writes the section in its place among those that the file has."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    pieces = _SECTION.split(text)[1:]
    sections = dict(zip(pieces[::2], (piece.strip() + "\n" for piece in pieces[1::2]), strict=True)) | {name: section}
    ordered = [f"<!-- {key} -->\n{sections[key]}" for key in BENCHMARKS if key in sections]
    path.write_text("\n".join([_HEAD, *ordered]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
