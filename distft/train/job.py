"""All that a run is, besides its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distft.config import RunConfig
from distft.data.order import StepPlan
from distft.data.shards import Sample, SplitReader
from distft.plan import Plan
from distft.plugin import Task


@dataclass(frozen=True)
class Job:
    """What to train, on which rows, and where it is kept."""

    config: RunConfig
    plan: Plan
    task: Task
    labels: list[str]
    run_dir: Path
    config_hash: str
    pad_id: int
    readers: dict[str, SplitReader]
    """Of the splits eval and test."""
    steps: Callable[[int], Iterator[tuple[StepPlan, list[list[Sample]]]]]
    """First step -> this rank's micro-batches of every step from there on."""
