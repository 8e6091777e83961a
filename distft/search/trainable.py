"""What Ray Tune starts for a trial: a process that is kept and given one trial after another."""

from __future__ import annotations

import json
import time
from typing import Any

from ray import tune

from distft.config_sections import ClusterConfig
from distft.launch.nested import NestedTrial
from distft.launch.worker import log_to
from distft.records import read_evaluations
from distft.train.job import Order
from distft.train.warm import WarmProcess


class NotCleanError(Exception):
    """A process that must not be used again was given a trial."""


class TrialProcess(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Trains trials; each `step` returns one evaluation.

    A trial of one worker on the torch engine is trained in this process, whose base weights stay
    in memory; any other one by the workers of a Ray Train run that this process starts.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return what a trial's own process reserves; workers it starts reserve their own.

        Args:
            config: As for `setup`.

        Returns:
            One bundle.
        """
        plan, cluster = config["order"]["plan"], config["cluster"]
        if plan["engine"] != "torch":
            # Tune takes no empty bundle.
            return tune.PlacementGroupFactory([{"CPU": 0.001}])
        bundle = {"CPU": float(cluster["cpus_per_worker"])}
        if plan["device"] == "cuda":
            bundle["GPU"] = 1.0
        return tune.PlacementGroupFactory([bundle])

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial, which begins with its first step.

        Args:
            config: `order` and `cluster`, as plain data.
        """
        self._warm = WarmProcess()
        self._running: WarmProcess | NestedTrial = self._warm
        self._clean = True
        self._given: dict[str, Any] | None = config

    def _begin(self, config: dict[str, Any]) -> None:
        self._order = Order.model_validate(config["order"])
        log_to(self._order.run_dir / "logs" / "trial.log")
        self._running = self._warm
        if self._order.plan.engine != "torch":
            self._running = NestedTrial(ClusterConfig.model_validate(config["cluster"]))
        self._running.start(self._order)

    def step(self) -> dict[str, Any]:
        """Train on to the next evaluation.

        Returns:
            `report`, the evaluation; at the end `result`, what eval.json holds, and `done`. As
            JSON: Tune would flatten them. `elapsed_s`: seconds this step took.

        Raises:
            Exception: What the trial raised; Tune ends a process that raised.
        """
        began = time.monotonic()
        try:
            if self._given is not None:
                given, self._given = self._given, None
                self._begin(given)
            report = self._running.pull()
        except Exception:
            self._running.release()
            raise
        elapsed_s = time.monotonic() - began
        if report is not None:
            return {"report": json.dumps(report), "elapsed_s": elapsed_s}
        result = read_evaluations(self._order.run_dir)
        self.release()
        return {"result": json.dumps(result), "elapsed_s": elapsed_s, "done": True}

    def release(self) -> None:
        """Free what the trial holds; called as soon as it is stopped."""
        self._clean = self._running.release() and self._clean

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial.

        Args:
            new_config: As for `setup`.

        Returns:
            True: it did.

        Raises:
            NotCleanError: An earlier trial left too much; the trial is to be started in another
                process.
        """
        self.release()
        if not self._clean:
            # False would be the answer, but Tune tells nobody of it.
            raise NotCleanError
        self._given = new_config
        return True

    def cleanup(self) -> None:
        """Free everything."""
        self._running.release()
