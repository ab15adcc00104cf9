"""Runs one stage as `dvc repro -s`, or another command of `dvc`, and says whether work was done. It knows no Prefect."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgm_lora.errors import RemoteError
from mgm_lora.stages.dvc_child import run_dvc
from tasks.masking import Mask

# What dvc says before it runs a command, takes up changed data, or imports. Without one of these it skipped or restored the stage.
_WORKS = re.compile(r"(Running stage|Verifying (data sources|outputs)|Importing) ")


@dataclass(frozen=True)
class Reproduction:
    """How a command of `dvc` ended."""

    exit_code: int
    ran: bool
    """Whether work was done; False where DVC skipped the stage, pulled what it makes, or restored it from its run cache."""
    last_lines: tuple[str, ...]


def reproduce(name: str, *, root: Path, force: bool, pull: bool, on_line: Callable[[str], None]) -> Reproduction:
    """Runs a stage where DVC finds that it must be run; `on_line` gets each line of `dvc` and of the stage as it comes, without passwords."""
    return _run(_arguments(name, force=force, pull=pull), root=root, on_line=on_line)


def push(names: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> None:
    """Gives the outputs of stages to the DVC remote. Raises RemoteError where it doesn't take all of them."""
    _exchange(["push", *names], root=root, on_line=on_line)


def pull(names: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> None:
    """Gets the outputs of stages from the DVC remote, in place of what lies there. Raises RemoteError where one is missing."""
    _exchange(["pull", "--force", *names], root=root, on_line=on_line)


def _exchange(arguments: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> None:
    ended = _run(arguments, root=root, on_line=on_line)
    if ended.exit_code != 0:
        raise RemoteError(
            "\n".join([f"`{shlex.join(['dvc', *arguments])}` failed. Its last lines:", "", *ended.last_lines])
            + f"\n\nTo try by hand: cd {shlex.quote(str(root))} && {shlex.join(['dvc', *arguments])}"
        )


def _run(arguments: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> Reproduction:
    ran, mask = False, Mask()

    def take(line: str) -> None:
        nonlocal ran
        ran = ran or _WORKS.match(line) is not None
        on_line(mask(line))

    end = run_dvc(["--wait-for-lock", *arguments], root=root, on_line=take)
    return Reproduction(exit_code=end.exit_code, ran=ran, last_lines=tuple(map(mask, end.last_lines)))


def command_by_hand(name: str, *, force: bool, pull: bool) -> str:
    """What to type in the repository's root to do the same."""
    return shlex.join(["dvc", *_arguments(name, force=force, pull=pull)])


def words_on_failure(name: str, ended: Reproduction, *, root: Path, by_hand: str) -> str:
    """What to tell people of a stage that failed: its last words, and how to try it."""
    return (
        f"stage '{name}' failed with exit code {ended.exit_code}. Its last lines:\n\n"
        + "\n".join(ended.last_lines)
        + f"\n\nTo try by hand: cd {shlex.quote(str(root))} && {by_hand}"
    )


def _arguments(name: str, *, force: bool, pull: bool) -> list[str]:
    return ["repro", *(["--force"] if force else []), *(["--pull"] if pull else []), "-s", name]
