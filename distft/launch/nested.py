"""A search trial of several workers: Ray Train inside the trial's process, report by report.

The workers hand each evaluation to a gate and wait there for the decision, so that a trial of
several workers is pulled like one of a single process, and ends by itself when it is stopped.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import ray

from distft.config_sections import ClusterConfig
from distft.launch import session
from distft.launch.trainer import fit
from distft.records import Metrics
from distft.train.job import Order

_POLL_S = 1.0
_END_S = 60.0
"""Longest wait for workers to end; a process that waits for their placement ends with ours."""


class _Gate:
    """Where the workers' rank 0 leaves its reports and waits to be let on; a Ray actor."""

    def __init__(self) -> None:
        self._report: Metrics | None = None
        self._arrived, self._decided = asyncio.Event(), asyncio.Event()
        self._goes_on = True
        self._closed = False

    async def put(self, report: Metrics) -> bool:
        """Leave a report; return whether the trial goes on once that is decided."""
        self._report = report
        self._decided.clear()
        self._arrived.set()
        if not self._closed:
            await self._decided.wait()
        return self._goes_on

    async def take(self) -> Metrics | None:
        """Return the next report when there is one."""
        await self._arrived.wait()
        self._arrived.clear()
        return self._report

    async def decide(self, goes_on: bool) -> None:
        """Let the waiting workers on, or home; home is for good."""
        self._goes_on, self._closed = goes_on, not goes_on
        self._decided.set()


class NestedTrial:
    """One trial of several workers, pulled report by report.

    Args:
        cluster: What each worker reserves.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._gate: Any = None
        self._fit: threading.Thread | None = None
        self._error: Exception | None = None
        self._waiting = False

    def start(self, order: Order) -> None:
        """Begin a trial, or continue it from its newest checkpoint.

        Args:
            order: Of the trial.
        """
        session.configure()
        self._gate = ray.remote(num_cpus=0)(_Gate).remote()
        self._error, self._waiting = None, False
        self._fit = threading.Thread(target=self._run, args=(order,), daemon=True)
        self._fit.start()

    def _run(self, order: Order) -> None:
        try:
            say = lambda text: print(text, flush=True)  # noqa: E731, T201 - to the trial's log
            fit(order, self._cluster, say=say, gate=self._gate)
        except Exception as error:  # noqa: BLE001 - raised again where the trial is pulled
            self._error = error

    def pull(self) -> Metrics | None:
        """Let the workers train on to their next evaluation.

        Returns:
            The report; None when the trial has come to its end and eval.json is written.

        Raises:
            DistftError: What the workers raised.
        """
        assert self._fit is not None
        if self._waiting:
            ray.get(self._gate.decide.remote(True))
        taken = self._gate.take.remote()
        while True:
            ready, _ = ray.wait([taken], timeout=_POLL_S)
            if ready:
                self._waiting = True
                report: Metrics = ray.get(ready[0])
                return report
            if not self._fit.is_alive():
                self._waiting = False
                if self._error is not None:
                    raise self._error
                return None

    def release(self) -> bool:
        """End the workers and give their resources back.

        Returns:
            True: this process itself holds nothing of the trial.
        """
        if self._fit is not None:
            if self._fit.is_alive():
                ray.get(self._gate.decide.remote(False))
            self._fit.join(_END_S)
            self._fit = None
            ray.kill(self._gate)
        return True
