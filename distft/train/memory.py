"""How much memory this process needs, and has needed at most."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

_KIB = 1024


def peak_memory_bytes() -> int:
    """Return the peak of this process: of the graphics card where one is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return int(torch.cuda.max_memory_allocated())
    return _status_bytes("VmHWM")


def memory_bytes() -> int:
    """Return what this process holds now: on the graphics card where one is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return int(torch.cuda.memory_allocated())
    return _status_bytes("VmRSS")


def release() -> None:
    """Give memory that is no longer used back to the system, and measure peaks from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # glibc keeps freed heap; a model trained before would count for the next one (malloc_trim(3)).
    ctypes.CDLL(None).malloc_trim(0)
    # Resets the peak of resident memory (proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * _KIB
