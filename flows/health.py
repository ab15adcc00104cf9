"""`python -m flows.health`, or `mgm-lora health`: looks at all that a nightly run needs, and says of each fault what to do. It mends nothing.

Exit code 1 where something is wrong; notes are no fault. A check that fails by itself is told as one more fault.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flows.services import deployed_version, status
from flows.started import read_started
from mgm_lora.stages.health import Finding, check_machine

_SIGNS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the findings go to standard output."""
    options = _parse(arguments)
    findings = [_show(finding) for finding in _all(options.pool)]
    wrong = sum(finding.state == "wrong" for finding in findings)
    print(f"\n{wrong} wrong of {len(findings)}" if wrong else f"\nall well ({len(findings)} looked at)")
    return int(wrong > 0)


def check_services() -> Iterator[Finding]:
    """Whether what `up` started still runs."""
    found = status()
    for name, told in found.items():
        if told.startswith("ended"):
            yield Finding(name, "wrong", told, "`mgm-lora up` starts it again")
        else:
            yield Finding(name, "ok", told)
    if not found:
        yield Finding("services", "note", "none were started here", "`mgm-lora up`, where this machine shall have them")


def _all(pool: str) -> Iterator[Finding]:
    yield from _guarded("services", check_services)
    started = read_started()
    if "prefect" in started:
        os.environ.setdefault("PREFECT_API_URL", f"{started['prefect'].address}/api")
    if "PREFECT_API_URL" in os.environ:
        from flows.server_health import check_server  # only now: Prefect reads the address when it is imported

        yield from _guarded("Prefect", lambda: check_server(pool, version=deployed_version()))
    else:
        yield Finding(
            "Prefect",
            "note",
            "no server is named by PREFECT_API_URL",
            "nothing runs by itself without one: `mgm-lora up`",
        )
    from tasks.dvc_health import check_dvc

    yield from _guarded("DVC", lambda: check_dvc(Path.cwd()))
    yield from _guarded("this machine", lambda: check_machine(Path.cwd()))


def _guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """One check that breaks must not hide what the others find."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(
            subject,
            "wrong",
            f"could not be looked at: {type(error).__name__}: {error}",
            "this is a fault of the check, or of what it asked",
        )


def _show(finding: Finding) -> Finding:
    print(f"{_SIGNS[finding.state]} {finding.subject}: {finding.found}")
    if finding.advice:
        print(f"      → {finding.advice}")
    return finding


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.health",
        description="Looks at services, schedules, worker, DVC's remote, MLflow's store, disk, clock, git and settings, and says what to do."
        " Run it in the repository's root.",
    )
    parser.add_argument(
        "--pool", default="gpu-24gb", help="the work pool, as prefect.yaml names it (default: %(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
