"""A run's metrics as Ray's own, which every node exports to Prometheus beside the cluster's."""

from __future__ import annotations

from ray.util.metrics import Gauge

from distft.records import Metrics

SHOWN = {
    "step": "optimizer steps done",
    "total_steps": "optimizer steps of the whole run",
    "loss": "training loss of the last logged step",
    "learning_rate": "learning rate of that step",
    "grad_norm": "global gradient norm of that step, before clipping",
    "tokens_per_s": "trained tokens a second",
    "data_wait": "share of the time spent waiting for data, 0 to 1",
    "eval_loss": "loss on the eval rows",
}
"""Metric -> what it is; Ray writes `ray_distft_` before it."""


class Gauges:
    """What rank 0 of a run shows; gone when its process ends.

    Args:
        run: Name of the run, the label `run` of every metric.
        study: The study it is a trial or the winner of, the label `study`; may be empty.
        total_steps: Of the run.
    """

    def __init__(self, run: str, study: str, total_steps: int) -> None:
        labels = {"run": run, "study": study}
        self._gauges = {
            name: Gauge(f"distft_{name}", description=what, tag_keys=tuple(labels))
            for name, what in SHOWN.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags(labels)
        self._gauges["total_steps"].set(total_steps)

    def show(self, line: Metrics) -> None:
        """Show the numbers of a line of metrics.jsonl."""
        for name in line.keys() & self._gauges.keys():
            self._gauges[name].set(float(line[name]))
