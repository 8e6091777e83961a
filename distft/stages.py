"""Which ZeRO stage fits, and what a worker needs at each: states, activations, buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from distft import compat, plugin
from distft.capacity import Capacity, size_text
from distft.config import RunConfig
from distft.errors import PlanError
from distft.states import Counts, buffer_bytes, host_bytes, model_states, offload_bytes

USABLE_SHARE = 0.9
"""Of the memory; the rest is the process, its libraries and what the allocator cannot use."""
STAGES = (0, 1, 2, 3)


class Memory(BaseModel):
    """What one worker needs, in bytes."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    """Optimizer states, and float32 master weights where there are any."""
    total_bytes: int
    """Of these three, the model states."""
    activations_bytes: int | None
    """Most that a micro-batch of longest samples takes; None: not counted, as on a CPU."""
    buffers_bytes: int
    """What is gathered and reduced in a backward pass on a graphics card."""
    step_bytes: int
    """What an optimizer step takes there for a while, when activations and buffers are free."""
    peak_bytes: int
    """total_bytes and what comes on top: activations and buffers, or the step, whichever is
    more."""
    available_bytes: int
    host_bytes: int
    """Main memory of a node that its workers offload to."""
    host_available_bytes: int
    disk_bytes: int
    """Of a node's disk at `cluster.nvme_path`."""
    by_stage: dict[str, int]
    """ZeRO stage -> total_bytes it would need."""
    peak_by_stage: dict[str, int]
    """ZeRO stage -> peak_bytes it would need."""

    def render(self) -> list[str]:
        """Return it as lines of a plan."""
        states = (
            f"weights {size_text(self.weights_bytes)}, gradients "
            f"{size_text(self.gradients_bytes)}, optimizer {size_text(self.optimizer_bytes)}"
        )
        if self.activations_bytes is None:
            lines = [
                f"memory     {size_text(self.total_bytes)} of model states a worker ({states}) of "
                f"{size_text(self.available_bytes)}; activations come on top"
            ]
        else:
            lines = [
                f"memory     {size_text(self.peak_bytes)} a worker of "
                f"{size_text(self.available_bytes)}: {size_text(self.total_bytes)} of model states "
                f"({states}), then {size_text(self.activations_bytes)} of activations and "
                f"{size_text(self.buffers_bytes)} of buffers, or {size_text(self.step_bytes)} in "
                "the optimizer's step"
            ]
        if self.host_bytes:
            lines.append(
                f"           {size_text(self.host_bytes)} of a node's main memory, of "
                f"{size_text(self.host_available_bytes)}, for what is offloaded"
            )
        if self.disk_bytes:
            lines.append(
                f"           {size_text(self.disk_bytes)} of a node's disk at cluster.nvme_path"
            )
        stages = ", ".join(f"{s}: {size_text(b)}" for s, b in self.peak_by_stage.items())
        return [*lines, f"           by ZeRO stage: {stages}"]


_RECOMPUTE = "; train.gradient_checkpointing=true takes less."


@dataclass(frozen=True)
class Workers:
    """Who shares the work and the machines."""

    world: int
    per_node: int
    device: Literal["cpu", "cuda"]
    rows: int
    """Longest samples of a micro-batch."""
    activations_bytes: int | None
    """Of a micro-batch; None where it is not counted."""


@dataclass(frozen=True)
class _Need:
    """Of one worker at one stage, in bytes."""

    states: tuple[int, int, int]
    activations: int
    buffers: int
    step: int

    @property
    def on_top(self) -> int:
        """What comes to the states."""
        return max(self.activations + self.buffers, self.step)

    @property
    def peak(self) -> int:
        """All together."""
        return sum(self.states) + self.on_top


def choose_stage(
    config: RunConfig,
    counts: Counts,
    capacity: Capacity,
    workers: Workers,
    reasons: dict[str, str],
) -> tuple[int, Memory]:
    """Return the ZeRO stage of a run and what a worker needs at it.

    Args:
        config: Of the run.
        counts: Of its model.
        capacity: What the cluster offers.
        workers: How many there are, and what a micro-batch takes.
        reasons: Gets one where the stage is derived.

    Returns:
        (the stage that is set or the lowest that fits, its memory).

    Raises:
        PlanError: It does not fit; the text says what would.
    """
    needs = {stage: _need(config, counts, stage, workers) for stage in STAGES}
    card = workers.device == "cuda"
    whole = capacity.gpu_memory_bytes if card else capacity.memory_bytes / workers.per_node
    available = int(whole * USABLE_SHARE)
    stage = _stage(config, needs, available, workers, capacity, reasons)
    need, host, disk, offload = needs[stage], 0, 0, config.cluster.offload
    host_available = int(capacity.memory_bytes * USABLE_SHARE)
    if offload == "nvme":
        disk = offload_bytes(config, counts, workers.world, workers.per_node)
    if offload != "none" and card:
        host = host_bytes(config, counts, stage, workers.world, workers.per_node)
        if host > host_available:
            nodes = math.ceil(capacity.nodes * host / host_available)
            raise PlanError(
                f"cluster.offload={offload} needs {size_text(host)} of a node's main memory; "
                f"{size_text(host_available)} of {capacity.source} is usable.",
                f"{nodes} nodes like these would hold it; so would nodes with more memory"
                + ("." if offload == "nvme" else ", or offload=nvme."),
            )
    weights, gradients, optimizer = need.states
    return stage, Memory(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        total_bytes=sum(need.states),
        activations_bytes=workers.activations_bytes,
        buffers_bytes=need.buffers,
        step_bytes=need.step,
        peak_bytes=need.peak,
        available_bytes=available,
        host_bytes=host,
        host_available_bytes=host_available,
        disk_bytes=disk,
        by_stage={str(s): sum(one.states) for s, one in needs.items()},
        peak_by_stage={str(s): one.peak for s, one in needs.items()},
    )


def _need(config: RunConfig, counts: Counts, stage: int, workers: Workers) -> _Need:
    states = model_states(config, counts, stage, workers.world, workers.device)
    if workers.device == "cpu":
        return _Need(states, 0, 0, 0)
    buffers, step = buffer_bytes(config, counts, stage, workers.world)
    return _Need(states, workers.activations_bytes or 0, buffers, step)


def _stage(
    config: RunConfig,
    needs: Mapping[int, _Need],
    available: int,
    workers: Workers,
    capacity: Capacity,
    reasons: dict[str, str],
) -> int:
    asked, lowest = config.cluster.zero_stage, _lowest(config)
    rules = compat.refused(config)
    able = [s for s in STAGES if s >= lowest and compat.STAGES[s] not in rules]
    fitting = [s for s in able if needs[s].peak <= available]
    if asked is not None:
        if asked in fitting or compat.STAGES[asked] in rules:
            return asked
        best = asked
    elif fitting:
        reasons["cluster.zero_stage"] = (
            "3 is the only stage whose states can lie on a disk"
            if config.cluster.offload == "nvme"
            else f"{fitting[0]} is the lowest stage that fits {workers.world} worker(s)"
        )
        return fitting[0]
    else:
        best = min(able, key=lambda s: needs[s].peak)
    need = needs[best]
    more = f" and {size_text(need.on_top)} on top of them" if need.on_top else ""
    raise PlanError(
        f"The model states need {size_text(sum(need.states))} a worker{more}; "
        f"{size_text(available)} of {capacity.source} is usable.",
        _what_fits(config, needs, able, available, workers),
    )


def _lowest(config: RunConfig) -> int:
    asked, offload = config.cluster.zero_stage, config.cluster.offload
    if offload == "cpu" and asked == 0:
        raise PlanError(
            "cluster.offload=cpu moves the optimizer states of ZeRO 1-3; zero_stage is 0.",
            "Set cluster.zero_stage=2, or offload=none.",
        )
    if offload == "nvme":
        if asked not in (None, 3):
            raise PlanError(
                f"cluster.offload=nvme needs ZeRO 3; zero_stage is {asked}.",
                "Set cluster.zero_stage=3, or offload=cpu.",
            )
        rule = compat.refused(config).get(compat.STAGES[3])
        if rule is not None:
            raise PlanError(
                "cluster.offload=nvme needs ZeRO 3, which does not go with method "
                f"{config.method.name}: {rule}.",
                "Set cluster.offload=cpu or none.",
            )
        return 3
    method = plugin.methods()[config.method.name]
    # PEFT keeps an adapter in float32, DeepSpeed turns all of a bfloat16 model into bfloat16.
    several = config.cluster.num_workers > 1
    if config.model.dtype == "bfloat16" and (not method.adapter or several):
        if asked == 0:
            raise PlanError(
                f"method {config.method.name} with model.dtype=bfloat16 needs float32 master "
                "weights, which ZeRO 1-3 keep; zero_stage is 0.",
                "Set cluster.zero_stage=1, or model.dtype=float32 with train.bf16=true.",
            )
        return 1
    return int(offload == "cpu")


def _what_fits(
    config: RunConfig,
    needs: Mapping[int, _Need],
    able: Sequence[int],
    available: int,
    workers: Workers,
) -> str:
    for stage in able:
        if needs[stage].peak <= available:
            said = size_text(needs[stage].peak)
            return f"cluster.zero_stage={stage} fits: {said} a worker."
    for stage in able:
        need = needs[stage]
        room = available - sum(need.states) - need.buffers
        rows = room * workers.rows // need.activations if need.activations else 0
        if rows > 0 and sum(need.states) + need.step <= available:
            return f"train.per_device_train_batch_size={rows} with zero_stage={stage} fits" + (
                "." if config.train.gradient_checkpointing else _RECOMPUTE
            )
    passing = needs[3].activations + needs[3].buffers
    if passing >= available:
        return (
            f"A micro-batch of one sample takes {size_text(passing / workers.rows)}: lower "
            "data.cutoff_len" + ("." if config.train.gradient_checkpointing else _RECOMPUTE)
        )
    # At stage 3 the states are divided, so workers times bytes is constant.
    fewest = math.ceil(sum(needs[3].states) * workers.world / (available - passing))
    text = f"cluster.num_workers={fewest} with zero_stage=3 would fit, on nodes like these"
    adapter = plugin.methods()[config.method.name].adapter
    return text + ("." if adapter else "; so may method=lora, which trains far less.")
