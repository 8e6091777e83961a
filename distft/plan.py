"""RunConfig + data statistics + capacity -> Plan: every number of a run, each with its reason.

Pure but for the meta-device model that counts parameters; loads no weights, launches nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from distft import compat, plugin
from distft.batch_sizes import LARGEST_DEFAULT_MICRO_BATCH, batch_sizes
from distft.capacity import Capacity
from distft.config import RunConfig
from distft.data.mix import Mix, MixedSet, mixed_sets
from distft.errors import ConfigError, PlanError
from distft.stages import Memory, Workers, choose_stage
from distft.states import Counts, count

if TYPE_CHECKING:
    from distft.data.stats import DataStats


class Plan(BaseModel):
    """Every number a run obeys."""

    params: int
    """Of the pre-trained model with its head, without what the method adds."""
    trainable_params: int
    world_size: int
    zero_stage: int
    offload: Literal["none", "cpu", "nvme"]
    engine: Literal["torch", "deepspeed"]
    device: Literal["cpu", "cuda"]
    threads_per_worker: int
    global_batch_size: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    micro_batch_tokens: int
    """Positions of a worker's micro-batch, padding included."""
    packing: bool
    """Samples share rows, if the model can tell them apart (see `distft.train.packing`)."""
    steps_per_epoch: int
    total_steps: int
    total_samples: int
    warmup_steps: int
    eval_steps: int
    """0: only at the start and the end."""
    save_steps: int
    learning_rate: float
    rows: dict[str, int]
    """Of `train` those of `data.train`."""
    mix: list[MixedSet] = Field(default_factory=list)
    """`data.train` and each set of `data.mix`; empty where it names none."""
    mean_tokens: float
    max_tokens: int
    exact: bool
    """False: rows and tokens are estimated from a sample of the data."""
    memory: Memory
    reasons: dict[str, str]
    """Dotted key -> why a value was derived as it is."""
    notes: list[str]

    @property
    def sets(self) -> Mix:
        """Which training set gives each sample."""
        rows = [one.rows for one in self.mix] or [self.rows["train"]]
        return Mix(tuple(rows), tuple(one.share for one in self.mix[1:]))

    def render(self) -> str:
        """Return the plan as a page of text."""
        about = "" if self.exact else "about "
        share = 100 * self.trainable_params / self.params
        lines = [
            f"model      {self.params:,} parameters, {self.trainable_params:,} trained "
            f"({share:.2f} %)",
            f"data       {about}{self.rows['train']:,} train, {self.rows['eval']:,} eval, "
            f"{self.rows['test']:,} test rows; {self.mean_tokens:.0f} tokens on average, "
            f"{self.max_tokens} at most",
            *(f"mix        {one.render(about)}" for one in self.mix),
            f"workers    {self.world_size} on {self.device}, ZeRO {self.zero_stage} "
            f"({self.engine} engine), offload {self.offload}, "
            f"{self.threads_per_worker} thread(s) each",
            f"step       {self.global_batch_size} samples on {self.world_size} worker(s), "
            f"{'packed' if self.packing else 'a row each'}, in micro-batches of at most "
            f"{about}{self.micro_batch_tokens:,} tokens ({self.per_device_train_batch_size} of the "
            "longest samples)",
            f"length     {self.total_steps:,} steps ({self.steps_per_epoch:,} an epoch), "
            f"{self.total_samples:,} samples, about {self.total_samples * self.mean_tokens:,.0f} "
            f"tokens, warm-up {self.warmup_steps}, evaluation every "
            f"{self.eval_steps or self.total_steps}",
            f"rate       {self.learning_rate:g}",
            *self.memory.render(),
            *(f"{key} because {reason}" for key, reason in self.reasons.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def make_plan(config: RunConfig, stats: DataStats, capacity: Capacity) -> Plan:
    """Return the plan of a run.

    Args:
        config: With its task resolved.
        stats: Rows and lengths of the data, counted or sampled.
        capacity: What the cluster offers.

    Returns:
        Every number, with reasons for the derived ones.

    Raises:
        ConfigError: Batch settings contradict one another.
        PlanError: It does not fit; the text says what would.
    """
    reasons: dict[str, str] = {}
    notes: list[str] = []
    world = config.cluster.num_workers
    device: Literal["cpu", "cuda"] = (
        "cuda" if capacity.gpus and config.cluster.gpus_per_worker != 0 else "cpu"
    )
    per_node = _workers_per_node(config, capacity, device)
    counts = count(config, stats.labels)
    sizes, stage, memory = _cut(config, stats, capacity, counts, (per_node, device), reasons)
    global_batch, micro, accumulation = sizes
    if device == "cuda" and memory.activations_bytes is None:
        notes.append("activations are not counted: this model's code needs values")
    train = config.train
    sets = Mix((stats.rows["train"], *stats.mixed_rows), config.data.mix_shares)
    steps_per_epoch = sets.steps_per_epoch(global_batch)
    total, samples = _length(config, sets, global_batch, reasons)
    eval_steps = _eval_steps(config, total, steps_per_epoch, reasons)
    learning_rate = _learning_rate(config, reasons)
    if train.save_steps is None:
        reasons["train.save_steps"] = "a checkpoint goes with every evaluation"
    _check_settings(config, stats)
    mixed = mixed_sets(sets, list(config.data.mix), samples)
    notes += [note for one in mixed[1:] if (note := one.warning())]
    return Plan(
        params=counts.params,
        trainable_params=counts.trainable,
        world_size=world,
        zero_stage=stage,
        offload=config.cluster.offload,
        engine=_engine(config, stage),
        device=device,
        threads_per_worker=max(1, capacity.cpus // per_node),
        global_batch_size=global_batch,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        micro_batch_tokens=micro * stats.max_tokens,
        packing=compat.packs(config, reasons),
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        total_samples=samples,
        warmup_steps=_warmup_steps(train.warmup_steps, total),
        eval_steps=eval_steps,
        save_steps=train.save_steps or eval_steps or total,
        learning_rate=learning_rate,
        rows=stats.rows,
        mix=mixed,
        mean_tokens=stats.mean_tokens,
        max_tokens=stats.max_tokens,
        exact=stats.exact,
        memory=memory,
        reasons=reasons,
        notes=notes,
    )


def _cut(
    config: RunConfig,
    stats: DataStats,
    capacity: Capacity,
    counts: Counts,
    placed: tuple[int, Literal["cpu", "cuda"]],
    reasons: dict[str, str],
) -> tuple[tuple[int, int, int], int, Memory]:
    """Return how a step is made up, its ZeRO stage and its memory.

    A micro-batch whose size is free is halved until it fits.
    """
    train, largest = config.train, LARGEST_DEFAULT_MICRO_BATCH
    per_node, device = placed
    while True:
        sizes, activations = batch_sizes(config, reasons, largest), None
        if device == "cuda":
            from distft.activations import activation_bytes

            activations = activation_bytes(config, stats.labels, sizes[1], stats.max_tokens)
        world = config.cluster.num_workers
        workers = Workers(world, per_node, device, sizes[1], activations)
        try:
            return sizes, *choose_stage(config, counts, capacity, workers, reasons)
        except PlanError:
            set_by_hand = (train.per_device_train_batch_size, train.gradient_accumulation_steps)
            if activations is None or set_by_hand != (None, None) or sizes[1] == 1:
                raise
            largest = sizes[1] // 2


def _length(
    config: RunConfig, sets: Mix, global_batch: int, reasons: dict[str, str]
) -> tuple[int, int]:
    """Return the steps and the samples of a run."""
    epochs, max_steps = config.train.num_train_epochs, config.train.max_steps
    total, samples = sets.length(global_batch, epochs, max_steps)
    if max_steps is None:
        reasons["train.max_steps"] = (
            f"{epochs:g} passes over data.train take {samples:,} samples"
            if sets.shares
            else f"{epochs:g} epochs of {sets.steps_per_epoch(global_batch)} steps make {total}"
        )
    return total, samples


def _engine(config: RunConfig, stage: int) -> Literal["torch", "deepspeed"]:
    alone = config.cluster.num_workers == 1 and stage == 0 and config.cluster.offload == "none"
    engine: Literal["torch", "deepspeed"] = "torch" if alone else "deepspeed"
    compat.check(config, zero_stage=stage, engine=engine)
    return engine


def _check_positions(config: RunConfig, stats: DataStats) -> None:
    method = plugin.methods()[config.method.name]
    taken = method.virtual_tokens(config.method)
    if not taken:
        # Asking for the limit reads the model's configuration, for every trial of a search.
        return
    from distft import hf

    limit = hf.max_positions(config.model, stated=True)
    if limit is not None and stats.max_tokens + taken > limit:
        raise PlanError(
            f"Method {method.name} puts {taken} virtual tokens before a row of "
            f"{stats.max_tokens}; {config.model.id} takes {limit} positions.",
            f"Set data.cutoff_len={limit - taken}.",
        )


def _check_settings(config: RunConfig, stats: DataStats) -> None:
    _check_positions(config, stats)
    if config.train.label_smoothing_factor and not plugin.tasks()[config.task.name].smooths:
        raise ConfigError(
            f"train.label_smoothing_factor: got {config.train.label_smoothing_factor}; task "
            f"{config.task.name} has no classes over which a label could be smoothed.",
            "Leave it out.",
        )


def _workers_per_node(config: RunConfig, capacity: Capacity, device: str) -> int:
    world = config.cluster.num_workers
    if device == "cuda" and world > capacity.nodes * capacity.gpus:
        raise PlanError(
            f"cluster.num_workers={world} needs as many graphics cards; {capacity.source} has "
            f"{capacity.nodes * capacity.gpus}.",
            f"Set cluster.num_workers={capacity.nodes * capacity.gpus}, or gpus_per_worker=0.",
        )
    return math.ceil(world / capacity.nodes)


def _learning_rate(config: RunConfig, reasons: dict[str, str]) -> float:
    if config.train.learning_rate is not None:
        return config.train.learning_rate
    method = plugin.methods()[config.method.name]
    reasons["train.learning_rate"] = f"{method.learning_rate:g} is the default of {method.name}"
    return method.learning_rate


def _warmup_steps(warmup: float, total: int) -> int:
    return round(warmup * total) if warmup < 1 else min(int(warmup), total)


def _eval_steps(config: RunConfig, total: int, per_epoch: int, reasons: dict[str, str]) -> int:
    train = config.train
    if train.eval_strategy == "no":
        return 0
    if train.eval_strategy == "epoch":
        return per_epoch
    if train.eval_steps is None:
        reasons["train.eval_steps"] = "a fifth of the run"
    return train.eval_steps or max(1, math.ceil(total / 5))
