"""Brings one stage up to date as `dvc repro -s` in a child process, and says whether work was done. It knows no Prefect."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mgm_lora.stages.dvc_child import run_dvc

# What dvc says before it runs a command, takes up changed data, or imports. Without one of these it skipped or restored the stage.
_WORKS = re.compile(r"(Running stage|Verifying (data sources|outputs)|Importing) ")


@dataclass(frozen=True)
class Reproduction:
    """How `dvc repro -s` ended."""

    exit_code: int
    ran: bool
    """Whether work was done; False where DVC skipped the stage, pulled what it makes, or restored it from its run cache."""
    last_lines: tuple[str, ...]


def reproduce(name: str, *, root: Path, force: bool, pull: bool, on_line: Callable[[str], None]) -> Reproduction:
    """Runs a stage where DVC finds that it must be run; `on_line` gets each line of `dvc` and of the stage as it comes."""
    ran = False

    def take(line: str) -> None:
        nonlocal ran
        ran = ran or _WORKS.match(line) is not None
        on_line(line)

    end = run_dvc(["--wait-for-lock", *_arguments(name, force=force, pull=pull)], root=root, on_line=take)
    return Reproduction(exit_code=end.exit_code, ran=ran, last_lines=end.last_lines)


def command_by_hand(name: str, *, force: bool, pull: bool) -> str:
    """What to type in the repository's root to do the same."""
    return shlex.join(["dvc", *_arguments(name, force=force, pull=pull)])


def _arguments(name: str, *, force: bool, pull: bool) -> list[str]:
    return ["repro", *(["--force"] if force else []), *(["--pull"] if pull else []), "-s", name]
