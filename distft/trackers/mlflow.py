"""MLflow: the server that MLFLOW_TRACKING_URI names, or a file of its own beside the runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from distft.plugin import Ending, Tracked, Tracker

EXPERIMENT = "distft"
"""Where MLFLOW_EXPERIMENT_NAME names no other."""
MOST_PARAMS = 100
"""Of one request."""
LONGEST_VALUE = 500
"""Characters of a parameter that every version of the server takes."""
_STATUS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class _Run:
    def __init__(self, run: Tracked) -> None:
        from mlflow import MlflowClient

        # A client of our own, not mlflow's current run: a process may train several.
        local = f"sqlite:///{run.output_dir / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        self.id: str = run.id or self._begin(run)
        if run.id is not None:
            self._client.update_run(self.id, status="RUNNING")

    def _begin(self, run: Tracked) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        tags = {"run_dir": str(run.run_dir), **({"study": run.study} if run.study else {})}
        begun = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in _flat(run.config)]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(begun, params=params[start : start + MOST_PARAMS])
        return str(begun)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in numbers.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, ending: Ending, summary: Mapping[str, float]) -> None:
        if summary:
            self.write(0, summary)
        self._client.set_terminated(self.id, _STATUS[ending])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


TRACKER = Tracker(
    name="mlflow",
    summary="the server of MLFLOW_TRACKING_URI, else mlflow.db in output_dir",
    package="mlflow",
    open=_Run,
)
