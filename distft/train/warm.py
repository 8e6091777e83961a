"""Trials one after another in one process: the base weights are read once and kept pristine."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from distft.data.shards import read_steps
from distft.records import Metrics
from distft.train import memory
from distft.train.job import Order, make_engine, make_job
from distft.train.loop import train
from distft.train.model import Pristine

MEMORY_TOLERANCE = 0.1
"""A process that keeps more than this beyond what it held before is not used again."""


class WarmProcess:
    """One process's trials, each pulled report by report.

    Attributes:
        pristine: The base weights every trial starts from.
    """

    def __init__(self) -> None:
        self.pristine = Pristine()
        self._reports: Iterator[Metrics] | None = None
        self._method, self._methods = "", set[str]()
        self._held_bytes = 0

    def start(self, order: Order) -> None:
        """Begin a trial, or continue it from its newest checkpoint.

        Args:
            order: Of a trial of one worker.
        """
        self.release()
        torch.set_num_threads(order.plan.threads_per_worker)
        print(f"{order.plan.threads_per_worker} thread(s)", flush=True)  # noqa: T201 - to its log
        self._method = order.config["method"]["name"]
        self._reports = self._run(order)

    def _run(self, order: Order) -> Iterator[Metrics]:
        # A generator of its own, so that nothing outlives it but the pristine weights.
        job = make_job(order, 0, read_steps)
        engine = make_engine(job, self.pristine.load)
        yield from train(job, engine)

    def pull(self) -> Metrics | None:
        """Train on to the next evaluation.

        Returns:
            The report, with `peak_memory_bytes` so far; None when the trial has come to its end and
            eval.json is written.
        """
        assert self._reports is not None
        for report in self._reports:
            if "eval_loss" in report:
                return {**report, "peak_memory_bytes": memory.peak_memory_bytes()}
        return None

    def release(self) -> bool:
        """Forget the trial and give its memory back.

        Returns:
            Whether what is left is within MEMORY_TOLERANCE of what earlier trials left.
        """
        if self._reports is None:
            return True
        self._reports.close()  # type: ignore[attr-defined]  # it is a generator
        self._reports = None
        memory.release()
        return self._is_clean(memory.memory_bytes())

    def _is_clean(self, now: int) -> bool:
        """Return whether no more is held than after the first trial of each method.

        What a method's libraries load when they are first used stays; a trial must leave nothing.
        """
        print(f"released: {now} bytes held, {self._held_bytes} before", flush=True)  # noqa: T201 - log
        if self._method not in self._methods:
            self._methods.add(self._method)
            self._held_bytes = max(self._held_bytes, now)
        return now <= self._held_bytes * (1 + MEMORY_TOLERANCE)
