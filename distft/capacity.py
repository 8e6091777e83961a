"""What a cluster offers, measured or stated, and sizes of memory as text."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from distft.config_sections import ShapeConfig
from distft.errors import ConfigError

GIB = 1 << 30
DATA_CPUS = 1
"""Left free for Ray Data beside the training workers; without one it waits for ever."""


@dataclass(frozen=True)
class Capacity:
    """What a cluster offers; all nodes are taken to be alike."""

    nodes: int
    cpus: int
    """CPU cores of a node."""
    memory_bytes: int
    """Main memory of a node."""
    gpus: int
    """Graphics cards of a node."""
    gpu_memory_bytes: int
    """Memory of one graphics card."""
    source: str
    """Where these numbers come from, for the plan's text."""


def local_capacity() -> Capacity:
    """Return what this machine offers."""
    import psutil
    import torch

    gpus = torch.cuda.device_count()
    return Capacity(
        nodes=1,
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus,
        gpu_memory_bytes=torch.cuda.get_device_properties(0).total_memory if gpus else 0,
        source="this machine",
    )


def shape_capacity(shape: ShapeConfig) -> Capacity:
    """Return what `cluster.shape` states.

    Args:
        shape: The section of the configuration.

    Returns:
        The same as numbers.

    Raises:
        ConfigError: A size is not one.
    """
    return Capacity(
        nodes=shape.nodes,
        cpus=shape.cpus,
        memory_bytes=parse_size("cluster.shape.memory", shape.memory),
        gpus=shape.gpus,
        gpu_memory_bytes=parse_size("cluster.shape.gpu_memory", shape.gpu_memory),
        source="cluster.shape",
    )


def parse_size(key: str, text: str) -> int:
    """Return a size of memory in bytes.

    Args:
        key: Where it was set, for messages.
        text: Such as `80GiB`.

    Returns:
        Above 0.

    Raises:
        ConfigError: It is none.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B)\s*", text)
    if not match or not float(match[1]):
        raise ConfigError(
            f"{key}: got {text!r}; allowed: a number above 0 and a unit, such as 80GiB."
        )
    power = "KMGT".index(match[2][0]) + 1
    return int(float(match[1]) * (1024 if "i" in match[2] else 1000) ** power)


def size_text(count_bytes: float) -> str:
    """Return a number of bytes for people.

    Args:
        count_bytes: How many.

    Returns:
        Such as `1.50 GiB`.
    """
    for unit, scale in (("GiB", GIB), ("MiB", 1 << 20)):
        if count_bytes >= scale:
            return f"{count_bytes / scale:.2f} {unit}"
    return f"{count_bytes / 1024:.1f} KiB"
