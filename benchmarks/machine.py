"""What the figures were measured on, in a line. It measures nothing."""

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

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


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
