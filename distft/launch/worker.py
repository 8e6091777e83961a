"""What runs in each Ray Train worker: build the job and the engine, forward the loop's reports."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray.train

from distft import plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.plan import Plan


def run_worker(order: dict[str, Any]) -> None:
    """Train this rank's part of a run.

    Args:
        order: Plain data: `config`, `plan`, `run_dir`, `data_root`, `config_hash`.
    """
    rank = ray.train.get_context().get_world_rank()
    run_dir = Path(order["run_dir"])
    _log_to(run_dir / "logs" / f"worker-{rank:05d}.log")
    plan = Plan.model_validate(order["plan"])
    config = parse(order["config"])

    import torch

    torch.set_num_threads(plan.threads_per_worker)
    print(f"rank {rank} of {plan.world_size}: {plan.threads_per_worker} thread(s)", flush=True)  # noqa: T201
    job = _job(config, plan, run_dir, Path(order["data_root"]), order["config_hash"], rank)

    from distft.train.loop import train

    for report in train(job, _engine(config, plan, job.labels)):
        if "eval_loss" in report:
            scalars = {k: v for k, v in report.items() if isinstance(v, int | float)}
            ray.train.report(scalars)


def _job(
    config: RunConfig, plan: Plan, run_dir: Path, data_root: Path, config_hash: str, rank: int
) -> Any:
    from distft import hf
    from distft.data.manifest import load_manifest
    from distft.data.order import plan_steps
    from distft.data.shards import SplitReader
    from distft.data.stream import stream
    from distft.train.job import Job

    manifest = load_manifest(data_root, verify=rank == 0)
    reader = SplitReader(data_root, manifest, "train")

    def steps(start: int) -> Any:
        plans = plan_steps(
            seed=config.train.seed,
            row_groups=reader.row_groups,
            lengths=reader.lengths,
            global_batch_size=plan.global_batch_size,
            micro_batch_size=plan.per_device_train_batch_size,
            accumulation=plan.gradient_accumulation_steps,
            world_size=plan.world_size,
            rank=rank,
            start_step=start,
            total_steps=plan.total_steps,
        )
        return stream(data_root, "train", plans)

    return Job(
        config=config,
        plan=plan,
        task=plugin.tasks()[config.task.name],
        labels=list(manifest.labels),
        run_dir=run_dir,
        config_hash=config_hash,
        pad_id=hf.load_tokenizer(config.model).pad_token_id,
        readers={split: SplitReader(data_root, manifest, split) for split in ("eval", "test")},
        steps=steps,
    )


def _engine(config: RunConfig, plan: Plan, labels: list[str]) -> Any:
    from distft.train.model import builder

    build = builder(config, labels)
    if plan.engine == "torch":
        from distft.train.torch_engine import TorchEngine

        return TorchEngine(build, config.train, plan)
    from distft.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(build, config, plan)


def _log_to(path: Path) -> None:
    """Send this process's output, also that of native code, to the run's own log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
