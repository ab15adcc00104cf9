"""What makes a training give the same bytes again on the same machine, for as long as it runs, and which kernels don't keep to it.

torch is asked for its deterministic kernels and warns of each that has none: those are named in the adapter's manifest. bitsandbytes' own
kernels are outside of that check: where they are used, they are named as unchecked. Seeds are set where something is drawn
(adapters, order of samples); here they are only named. Bytes may differ between machines, cards, versions and numbers of threads.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mgm_lora.memory.knobs import StepKnobs

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_FILL = "fill_uninitialized_memory"  # off during a training: it costs time, and shows only errors of torch's own
_CUBLAS_FIXED = ":4096:8"  # buffers of a fixed size: cuBLAS then always takes the same algorithm
_WARNED = re.compile(
    r"(?P<kernel>\S.*?) (does not have a deterministic implementation|defaults to a non-deterministic algorithm)"
)
_BITSANDBYTES = {  # two runs give the same bytes on a CPU (tests/mgm_lora/training/test_exactness.py); on a card they were not compared
    "nf4": "bitsandbytes' 4-bit kernels",
    "8bit": "bitsandbytes' 8-bit AdamW",
    "32bit": "bitsandbytes' AdamW",
}


@dataclass
class Determinism:
    """The settings in force, and the kernels that were met."""

    seed: int
    device: str
    threads: int
    settings: dict[str, Any]
    not_deterministic: set[str] = field(default_factory=set)
    """Kernels that torch warned of."""
    not_checked: tuple[str, ...] = ()
    """Kernels in use that torch's check doesn't see."""

    def details(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "seed": self.seed,
            "device": self.device,
            "threads": self.threads,
            **self.settings,
            "not_deterministic": sorted(self.not_deterministic),
            "not_checked": list(self.not_checked),
        }


@contextmanager
def deterministic(seed: int, *, knobs: StepKnobs) -> Iterator[Determinism]:
    """torch keeps to deterministic kernels during the block, where it has them; what it met is in the value, complete when the block ends."""
    before = _current()
    workspace = os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, _CUBLAS_FIXED)
    _set(debug_mode=1, fill=False, cudnn=(True, False))
    found = Determinism(
        seed=seed,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
        settings={
            "deterministic_algorithms": "warn_only",
            "cudnn": {"deterministic": True, "benchmark": False},
            "cublas_workspace": os.environ[_CUBLAS],
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
        not_checked=_of_bitsandbytes(knobs),
    )
    try:
        with _listening(found.not_deterministic):
            yield found
    finally:
        _set(**before)
        if workspace is None:
            del os.environ[_CUBLAS]


@contextmanager
def _listening(kernels: set[str]) -> Iterator[None]:
    """Adds the kernels that torch warns of; any other warning goes where it went."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "always", message=r".*(deterministic implementation|non-deterministic algorithm|uses CuBLAS)"
        )
        passed_on = warnings.showwarning

        def show(message: Any, *arguments: Any, **options: Any) -> None:
            kernel = kernel_named_by(str(message))
            if kernel is None:
                passed_on(message, *arguments, **options)
            else:
                kernels.add(kernel)

        warnings.showwarning = show
        yield


def kernel_named_by(warning: str) -> str | None:
    """The kernel of which torch says in this warning that it is not deterministic."""
    if "uses CuBLAS" in warning:
        return "cuBLAS without CUBLAS_WORKSPACE_CONFIG"
    match = _WARNED.search(warning)
    return match["kernel"] if match else None


def _of_bitsandbytes(knobs: StepKnobs) -> tuple[str, ...]:
    used = ["nf4"] if knobs.quantization == "nf4" else []
    if knobs.optimizer != "adamw":
        used.append("8bit" if knobs.optimizer.endswith("8bit") else "32bit")
    return tuple(_BITSANDBYTES[name] for name in used)


def _current() -> dict[str, Any]:
    return {
        "debug_mode": torch.get_deterministic_debug_mode(),
        "fill": getattr(torch.utils.deterministic, _FILL),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
    }


def _set(*, debug_mode: int, fill: bool, cudnn: tuple[bool, bool]) -> None:
    torch.set_deterministic_debug_mode(debug_mode)  # 1: deterministic where possible, else warn
    setattr(torch.utils.deterministic, _FILL, fill)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
