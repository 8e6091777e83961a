"""How much memory this process has needed at most."""

from __future__ import annotations

import resource

import torch


def peak_memory_bytes() -> int:
    """Return the peak of this process: of the graphics card where one is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return int(torch.cuda.max_memory_allocated())
    # Linux reports kibibytes (getrusage(2)).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
