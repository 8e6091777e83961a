"""RunConfig + data statistics + capacity -> Plan: every number of a run, each with its reason.

Pure but for the meta-device model that counts parameters; loads no weights, launches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from distft import compat, plugin
from distft.batch_sizes import batch_sizes
from distft.capacity import Capacity, size_text
from distft.config import RunConfig
from distft.data.mix import Mix, MixedSet, mixed_sets
from distft.errors import ConfigError, PlanError
from distft.states import count, model_states

if TYPE_CHECKING:
    from distft.data.stats import DataStats

USABLE_SHARE = 0.9
"""Of the memory, for model states; the rest is the process and its libraries."""
STAGES = (0, 1, 2, 3)


class Memory(BaseModel):
    """Model states of one worker in bytes; activations are not counted yet."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    """Optimizer states, and float32 master weights where there are any."""
    total_bytes: int
    available_bytes: int
    by_stage: dict[str, int]
    """ZeRO stage -> total_bytes it would need."""


class Plan(BaseModel):
    """Every number a run obeys."""

    params: int
    """Of the pre-trained model with its head, without what the method adds."""
    trainable_params: int
    world_size: int
    zero_stage: int
    offload: Literal["none", "cpu"]
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
        memory = self.memory
        stages = ", ".join(f"{s}: {size_text(b)}" for s, b in memory.by_stage.items())
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
            f"{self.total_samples:,} samples, warm-up {self.warmup_steps}, evaluation every "
            f"{self.eval_steps or self.total_steps}",
            f"rate       {self.learning_rate:g}",
            f"memory     {size_text(memory.total_bytes)} of model states a worker (weights "
            f"{size_text(memory.weights_bytes)}, gradients {size_text(memory.gradients_bytes)}, "
            f"optimizer {size_text(memory.optimizer_bytes)}) of "
            f"{size_text(memory.available_bytes)}; activations come on top",
            f"           by ZeRO stage: {stages}",
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
    available = int(
        (capacity.gpu_memory_bytes if device == "cuda" else capacity.memory_bytes / per_node)
        * USABLE_SHARE
    )
    totals = {s: model_states(config, counts, s, world, device) for s in STAGES}
    stage = _stage(config, totals, available, world, capacity, reasons)
    weights, gradients, optimizer = totals[stage]
    global_batch, micro, accumulation = batch_sizes(config, reasons)
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
        memory=Memory(
            weights_bytes=weights,
            gradients_bytes=gradients,
            optimizer_bytes=optimizer,
            total_bytes=weights + gradients + optimizer,
            available_bytes=available,
            by_stage={str(s): sum(parts) for s, parts in totals.items()},
        ),
        reasons=reasons,
        notes=notes,
    )


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


def _stage(
    config: RunConfig,
    totals: Mapping[int, tuple[int, int, int]],
    available: int,
    world: int,
    capacity: Capacity,
    reasons: dict[str, str],
) -> int:
    asked = config.cluster.zero_stage
    lowest = 0
    if config.cluster.offload == "cpu":
        if asked == 0:
            raise PlanError(
                "cluster.offload=cpu moves the optimizer states of ZeRO 1-3; zero_stage is 0.",
                "Set cluster.zero_stage=2, or offload=none.",
            )
        lowest = 1
    adapter = plugin.methods()[config.method.name].adapter
    # PEFT keeps an adapter in float32, DeepSpeed turns all of a bfloat16 model into bfloat16.
    if config.model.dtype == "bfloat16" and (not adapter or world > 1):
        if asked == 0:
            raise PlanError(
                f"method {config.method.name} with model.dtype=bfloat16 needs float32 master "
                "weights, which ZeRO 1-3 keep; zero_stage is 0.",
                "Set cluster.zero_stage=1, or model.dtype=float32 with train.bf16=true.",
            )
        lowest = max(lowest, 1)
    rules = compat.refused(config)
    able = [s for s in STAGES if s >= lowest and compat.STAGES[s] not in rules]
    fitting = [s for s in able if sum(totals[s]) <= available]
    if asked is not None:
        if asked in fitting or compat.STAGES[asked] in rules:
            return asked
        need = sum(totals[asked])
    elif fitting:
        reasons["cluster.zero_stage"] = (
            f"{fitting[0]} is the lowest stage that fits {world} worker(s)"
        )
        return fitting[0]
    else:
        need = min((sum(totals[s]) for s in able), default=0)
    raise PlanError(
        f"The model states need {size_text(need)} a worker; {size_text(available)} of "
        f"{capacity.source} is usable.",
        _what_fits(totals, fitting, available, world, adapter),
    )


def _what_fits(
    totals: Mapping[int, tuple[int, int, int]],
    fitting: list[int],
    available: int,
    world: int,
    adapter: bool,
) -> str:
    if fitting:
        return (
            f"cluster.zero_stage={fitting[0]} fits: {size_text(sum(totals[fitting[0]]))} a worker."
        )
    # At stage 3 everything is divided, so workers times bytes is constant.
    workers = math.ceil(sum(totals[3]) * world / available)
    text = f"cluster.num_workers={workers} with zero_stage=3 would fit, on nodes like these"
    return text + ("." if adapter else "; so may method=lora, which trains far less.")


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
