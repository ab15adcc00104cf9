"""Starts a stage under DeepSpeed's own launchers: one process per card, on this machine or on the hosts of a hostfile.

On one machine that is `deepspeed.launcher.launch`, which sets each rank's environment and ends the others when one fails; over several hosts
`deepspeed.launcher.runner` starts it on each, by pdsh. Every host needs this project's folder at the same path, on a disk that they share.
Without a card the ranks are processes that talk by gloo. It doesn't know what the stage does.
"""

import base64
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from mgm_lora.errors import SettingsError, TrainingError
from mgm_lora.memory.knobs import StepKnobs

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
_TIED = "DVC_STAGE"  # a stage that has it ends with its ancestors (mgm_lora.stages.process)
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_TAIL_BYTES = 16_384
_NUM_LAST_WORDS = 12


def run_under_deepspeed(
    arguments: Sequence[str],
    *,
    knobs: StepKnobs,
    hostfile: Path | None = None,
    program: Sequence[str] = ("--module", "mgm_lora"),
) -> None:
    """Runs `mgm-lora ARGUMENTS`, or another program, once per card and waits for it; stages end with this process.

    Raises:
        SettingsError: there are fewer cards than the plan says, before anything is started.
        TrainingError: a rank failed; its last words, and its exit code as the error's.
    """
    command = [*launch_command(knobs, hostfile=hostfile), "--no_local_rank", *program, *arguments]
    environment = {_TIED: "train", **os.environ}  # ranks of a stage that was started by hand end with it too
    logger.info("starting %d rank(s) under DeepSpeed's launcher", knobs.num_cards)
    exit_code, last_words = _run(command, environment=environment)
    if exit_code:
        error = TrainingError(f"a rank ended with exit code {exit_code}; its last words:\n{last_words}")
        error.exit_code = exit_code
        raise error


def launch_command(knobs: StepKnobs, *, hostfile: Path | None = None) -> list[str]:
    """DeepSpeed's launcher with where to start what, up to the program; raises as run_under_deepspeed does."""
    hosts = _hosts(hostfile, num_cards=knobs.num_cards)
    if set(hosts) <= {"localhost", "127.0.0.1", platform.node()}:
        world = base64.urlsafe_b64encode(json.dumps(hosts).encode()).decode()
        here = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}", "--quiet"]
        return [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}", *here]
    include = "@".join(f"{host}:{','.join(cards)}" for host, cards in hosts.items())
    return [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={hostfile}", f"--include={include}"]


def is_launched_rank() -> bool:
    """Whether a launcher has started this process as one of its ranks."""
    return all(name in os.environ for name in _RANK_VARIABLES)


def is_first_rank() -> bool:
    """Whether this process is the one that writes: the first rank, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def of_first_rank(work: Callable[[], Result]) -> Result:
    """What `work` gives on the first rank, on all of them; the others wait for it."""
    if not is_launched_rank() or not torch.distributed.is_initialized():
        return work()
    results: list[Result | None] = [work() if is_first_rank() else None]
    torch.distributed.broadcast_object_list(results)
    assert results[0] is not None
    return results[0]


def part_ranks() -> None:
    """The end of the ranks' talk: call it on all of them when the work is done.

    Left to the interpreter's end, gloo's threads now and then outlive what they hold, and abort a process that has done its work.
    """
    if is_launched_rank() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody still talks
        torch.distributed.destroy_process_group()


def _hosts(hostfile: Path | None, *, num_cards: int) -> dict[str, list[str]]:
    """The cards to use, by host."""
    hosts = {"localhost": _cards_here(num_cards)} if hostfile is None else _read_hostfile(hostfile)
    found = sum(len(cards) for cards in hosts.values())
    if found < num_cards:
        where = "this machine" if hostfile is None else f"'{hostfile}'"
        raise SettingsError(
            f"the plan is for {num_cards} cards, found {found} on {where}:"
            " set step.num_cards to what is there and plan anew, or name more hosts in step.hostfile"
        )
    chosen: dict[str, list[str]] = {}
    for host, cards in hosts.items():
        missing = num_cards - sum(len(taken) for taken in chosen.values())
        if missing:
            chosen[host] = cards[:missing]
    return chosen


def _cards_here(num_cards: int) -> list[str]:
    visible = os.environ.get(_VISIBLE)
    if visible:
        return [card.strip() for card in visible.split(",")]
    num_here = torch.cuda.device_count() if torch.cuda.is_available() else num_cards
    return [str(number) for number in range(num_here)]


def _read_hostfile(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise SettingsError(
            f"no hostfile at '{path}': write one, a line `name slots=cards` per host, or leave step.hostfile out"
        )
    hosts: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 and words[1].startswith("slots=") else ""
        if not slots.isdigit() or words[0] in hosts:
            raise SettingsError(f"'{path}' must hold a line `name slots=cards` per host, each once; found {line!r}")
        hosts[words[0]] = [str(number) for number in range(int(slots))]
    return hosts


def _run(command: Sequence[str], *, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code, as a shell says it, and the end of what was said; all of it goes to this process's stderr as it comes."""
    process = subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE)
    assert process.stderr is not None
    tail = b""
    try:
        while piece := os.read(process.stderr.fileno(), 65_536):
            sys.stderr.write(piece.decode(errors="replace"))
            sys.stderr.flush()
            tail = (tail + piece)[-_TAIL_BYTES:]
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # the launcher ends its ranks
            process.wait()
        process.stderr.close()
    return _as_shell(code), _last_words(tail)


def _as_shell(code: int) -> int:
    """128 + the signal where one ended a rank: DeepSpeed's launcher passes it on as 256 less the signal."""
    if code < 0:
        return 128 - code
    return 128 + 256 - code if code > 256 - 65 else code


def _last_words(tail: bytes) -> str:
    lines = tail.decode(errors="replace").replace("\r", "\n").splitlines()
    spoken = [line for line in lines if line.strip() and "[launch.py:" not in line]
    return "\n".join(spoken[-_NUM_LAST_WORDS:])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
