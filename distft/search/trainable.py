"""What Ray Tune starts for a trial: a process that is kept and given one trial after another."""

from __future__ import annotations

import json
import time
from typing import Any

from ray import tune

from distft.config_sections import ClusterConfig
from distft.errors import DistftError, SearchError
from distft.launch.nested import NestedTrial
from distft.launch.worker import log_to
from distft.records import read_evaluations
from distft.train.job import Order
from distft.train.warm import WarmProcess


class TrialProcess(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Trains trials; each `step` returns one evaluation.

    A trial of one worker on the torch engine is trained in this process, whose base weights stay
    in memory; any other one by the workers of a Ray Train run that this process starts.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trial.

        Args:
            config: `order` and `cluster`, as plain data.
        """
        self._warm = WarmProcess()
        self._clean = True
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self._order = Order.model_validate(config["order"])
        log_to(self._order.run_dir / "logs" / "trial.log")
        self._running: WarmProcess | NestedTrial = self._warm
        if self._order.plan.engine != "torch":
            self._running = NestedTrial(ClusterConfig.model_validate(config["cluster"]))
        self._started = False

    def step(self) -> dict[str, Any]:
        """Train on to the next evaluation.

        Returns:
            `report`, the evaluation; at the end `result`, what eval.json holds, and `done`; where
            the trial failed `failed`, its reason, and `done`. As JSON: Tune would flatten them.
            `elapsed_s`: seconds this step took.
        """
        began = time.monotonic()
        try:
            if not self._started:
                self._started = True
                self._running.start(self._order)
            report = self._running.pull()
        except Exception as error:  # noqa: BLE001 - the study goes on; the trial says why it failed
            # What the failure left in this process is not known, so it is not used again.
            self._clean = False
            self._running.release()
            return {"failed": json.dumps(_reason(error)), "done": True}
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
            False when this process must not be used again; the trial is then started in another.
        """
        self.release()
        if self._clean:
            self._begin(new_config)
        return self._clean

    def cleanup(self) -> None:
        """Free everything."""
        self._running.release()


def _reason(error: Exception) -> dict[str, Any]:
    if isinstance(error, DistftError):
        return error.as_dict()
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
        text = f"out of memory: {text}"
    return SearchError(text).as_dict()
