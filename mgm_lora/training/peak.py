"""The most memory that this process has held: on a card what torch allocated, without one what was resident.

It doesn't predict; the plan does that.
"""

import resource
import sys

import torch

from mgm_lora.memory.plan import GIB


def peak_memory_gib() -> float:
    """GiB, since the process began."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
