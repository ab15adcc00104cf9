"""What the figures were measured on, in a line, and what this process holds of its memory."""

import ctypes
import importlib.metadata
import os
import platform
import resource
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")


def describe_machine() -> str:
    """Processor, memory, card and versions."""
    memory = psutil.virtual_memory().total / 2**30
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {card}; Python {platform.python_version()}, {versions}"


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()


def resident_bytes() -> int:
    """Of this process, now."""
    return int(psutil.Process().memory_info().rss)


def keep_freed_blocks(*, of_up_to: int) -> None:
    """In place, for this process: how large freed blocks may be for glibc to keep them for later (left alone, up to 32 MiB)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, of_up_to)
        mallopt(_M_TRIM_THRESHOLD, 2 * of_up_to)


def peak_resident_bytes() -> int:
    """Of this process, at most so far. Not getrusage's where it can be had otherwise: that begins with what the parent process held."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, which has no /proc
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
