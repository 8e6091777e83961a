"""What runs in each Ray Train worker: build the job and the engine, forward the loop's reports."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from distft.redact import Hiding

if TYPE_CHECKING:
    from distft.records import Metrics
    from distft.train.engine import Engine


def run_worker(order: dict[str, Any]) -> None:
    """Train this rank's part of a run, or of a search trial as far as it is let go on.

    Args:
        order: A `distft.train.job.Order` as plain data; a trial's also holds `gate`, the actor that
            takes its reports and says after each whether it goes on.
    """
    import torch

    from distft.data.stream import stream
    from distft.launch.gauges import Gauges
    from distft.train.job import Order, make_engine, make_job
    from distft.train.loop import train

    gate = order.pop("gate", None)
    given = Order.model_validate(order)
    rank = ray.train.get_context().get_world_rank()
    log_to(given.run_dir / "logs" / f"worker-{rank:05d}.log")
    plan = given.plan
    torch.set_num_threads(plan.threads_per_worker)
    here = ray.util.get_node_ip_address()
    said = f"rank {rank} of {plan.world_size} on {here}: {plan.threads_per_worker} thread(s)"
    print(said, flush=True)  # noqa: T201 - to the run's log
    job = make_job(given, rank, lambda _, plans: stream(given.data_root, "train", plans))
    engine = make_engine(job)
    gauges = None if rank else Gauges(job.tracked.name, job.tracked.study or "", plan.total_steps)
    for report in train(job, engine):
        if gauges is not None:
            gauges.show(report)
        if "eval_loss" in report:
            scalars = {k: v for k, v in report.items() if isinstance(v, int | float)}
            ray.train.report(scalars)
            if gate is not None and not _goes_on(gate, engine, report):
                return


def _goes_on(gate: Any, engine: Engine, report: Metrics) -> bool:
    """Hand a trial's report over and wait for the decision, the same on every rank."""
    from distft.train.memory import peak_memory_bytes

    report = {**report, "peak_memory_bytes": max(engine.gather(peak_memory_bytes()))}
    decision = ray.get(gate.put.remote(report)) if engine.rank == 0 else None
    return bool(engine.gather(decision)[0])


def log_to(path: Path) -> None:
    """Send this process's output, also that of native code, to the run's own log.

    Args:
        path: The log; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = Hiding(os.fdopen(1, "w", buffering=1, closefd=False))
    sys.stderr = Hiding(os.fdopen(2, "w", buffering=1, closefd=False))
