"""All that a run is, besides its engine; and how both are made from an order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from distft import hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.data import sets
from distft.data.manifest import Manifest, load_manifest
from distft.data.order import StepPlan, plan_steps
from distft.data.pack import Budget
from distft.data.shards import Sample, SplitReader
from distft.plan import Plan
from distft.plugin import LossSettings, Task, Tracked
from distft.redact import hidden
from distft.train.batch import Collator, make_collator
from distft.train.engine import Engine
from distft.train.model import Load, builder

Steps = Iterator[tuple[StepPlan, list[list[Sample]]]]

_OVERHEAD_TOKENS = {"cpu": 64, "cuda": 512}
"""What a micro-batch costs besides its tokens. On a CPU measured with models of 10 to 60 million
parameters (27 to 67); a graphics card reads all weights in the time it computes about 200 tokens
and starts hundreds of kernels besides."""


class Order(BaseModel):
    """What a process needs to know to train its part of a run; plain data."""

    config: dict[str, Any]
    """With its task resolved."""
    plan: Plan
    run_dir: Path
    data_root: Path
    config_hash: str
    rungs: list[int] | None = None
    """A search trial: steps after which it is evaluated and saved besides; it keeps no model and
    does not see the test rows. None: a run."""


@dataclass(frozen=True)
class Job:
    """What to train, on which rows, and where it is kept."""

    config: RunConfig
    plan: Plan
    task: Task
    labels: list[str]
    run_dir: Path
    config_hash: str
    collate: Collator
    loss_settings: LossSettings
    readers: dict[str, SplitReader]
    """Of the split eval and, unless it is a search trial, test."""
    steps: Callable[[int, bool], Steps]
    """(first step, whether samples share rows) -> this rank's part of every step from there on."""
    rungs: frozenset[int] | None = None
    """See `Order`."""

    @property
    def tracked(self) -> Tracked:
        """What trackers are told of it."""
        output_dir = Path(self.config.output_dir).absolute()
        inside = self.run_dir.absolute().is_relative_to(output_dir)
        # Trials and the winner lie in the directory of their study.
        parts = self.run_dir.absolute().relative_to(output_dir).parts if inside else ()
        return Tracked(
            name=self.config.name,
            study=parts[0] if len(parts) > 1 else None,
            run_dir=self.run_dir,
            output_dir=output_dir if inside else self.run_dir.parent,
            config=hidden(self.config.dump()),
        )


def make_job(
    order: Order, rank: int, read: Callable[[SplitReader, Iterable[StepPlan]], Steps]
) -> Job:
    """Return one rank's job.

    Args:
        order: Of the run.
        rank: Which of the workers asks; rank 0 verifies the shards.
        read: (reader of the training rows, step plans) -> the steps with their samples.

    Returns:
        The job.
    """
    config, plan = parse(order.config), order.plan
    manifest = load_manifest(order.data_root, verify=rank == 0)
    reader = SplitReader(order.data_root, manifest, "train")
    task = plugin.tasks()[config.task.name]

    def steps(start: int, packed: bool) -> Steps:
        plans = plan_steps(
            seed=config.train.seed,
            row_groups=reader.row_groups,
            lengths=reader.lengths,
            global_batch_size=plan.global_batch_size,
            budget=_budget(plan, task, manifest.cutoff_len if packed else None),
            world_size=plan.world_size,
            rank=rank,
            start_step=start,
            total_steps=plan.total_steps,
            mix=sets.mix_of(manifest, config.data.mix_shares),
            total_samples=plan.total_samples if config.data.mix else None,
        )
        return read(reader, plans)

    labels = list(manifest.labels)
    splits = ("eval", "test") if order.rungs is None else ("eval",)
    return Job(
        config=config,
        plan=plan,
        task=task,
        labels=labels,
        run_dir=order.run_dir,
        config_hash=order.config_hash,
        collate=make_collator(config, task, labels),
        loss_settings=_loss_settings(config, task, manifest),
        readers={split: SplitReader(order.data_root, manifest, split) for split in splits},
        steps=steps,
        rungs=None if order.rungs is None else frozenset(order.rungs),
    )


def _budget(plan: Plan, task: Task, row_tokens: int | None) -> Budget:
    return Budget(
        micro_batch_tokens=plan.micro_batch_tokens,
        row_tokens=row_tokens and min(row_tokens, plan.micro_batch_tokens),
        # A sample's length is that of its input: what a decoder writes comes on top.
        micro_batch_rows=plan.per_device_train_batch_size if task.labels == "sequence" else None,
        overhead_tokens=_OVERHEAD_TOKENS[plan.device],
    )


def _loss_settings(config: RunConfig, task: Task, manifest: Manifest) -> LossSettings:
    counts, rows = sets.label_counts(manifest, config.data.mix_shares)
    weights = task.class_weights(config.task, manifest.labels, counts, rows)
    return LossSettings(
        label_smoothing=config.train.label_smoothing_factor,
        class_weights=None if weights is None else torch.tensor(weights),
    )


def make_engine(job: Job, load: Load = hf.load_model) -> Engine:
    """Return the engine the plan asks for, with the base weights and the method attached.

    Args:
        job: What to train.
        load: Gives the base model.

    Returns:
        The engine.
    """
    build = builder(job.config, job.labels, load)
    if job.plan.engine == "torch":
        from distft.train.torch_engine import TorchEngine

        return TorchEngine(build, job.config, job.plan)
    # Its import takes seconds, which a process of the torch engine need not pay.
    from distft.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(build, job.config, job.plan)
