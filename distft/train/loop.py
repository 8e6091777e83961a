"""The training loop: a generator of reports. A worker forwards them, a test iterates them.

An optimizer step is exactly the samples of its step plan; its loss is the sum over all targets
divided by their global number, however the samples are cut into micro-batches and ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from distft import virtual_tokens
from distft.data.order import StepPlan
from distft.data.shards import Sample
from distft.errors import TrainError
from distft.records import Metrics
from distft.train import checkpoint
from distft.train.best import check_measured, compare, stopped
from distft.train.checkpoint import Position
from distft.train.engine import Engine
from distft.train.finish import check_changed, evaluate_split, finish
from distft.train.job import Job, Steps
from distft.train.journal import Journal
from distft.train.packing import packed
from distft.train.schedule import learning_rate
from distft.train.tracking import chosen


def train(job: Job, engine: Engine) -> Iterator[Metrics]:
    """Train from where the run directory stands; called by all ranks.

    Writes metrics.jsonl, checkpoints, probe.safetensors and, last, eval.json. A search trial is
    evaluated and saved at its rungs, and sees no test rows.

    Args:
        job: What to train.
        engine: On what; with the base weights and the method attached. Is closed.

    Yields:
        The lines of metrics.jsonl, the same on every rank.

    Raises:
        TrainError: The loss is not finite, a frozen parameter moved, or none moved.
    """
    with contextlib.closing(engine):
        position, notes = _restore(job, engine)
        done = position.step if position.baseline else None
        trackers = chosen(job.config.report_to, trial=job.rungs is not None)
        with Journal(job.run_dir, engine.rank, done, trackers, job.tracked) as journal:
            yield from _train(job, engine, position, notes, journal)


def _train(
    job: Job, engine: Engine, position: Position, notes: list[str], journal: Journal
) -> Iterator[Metrics]:
    packs, said = packed(job, engine)
    for note in notes + said:
        yield _log(journal, {"step": position.step, "samples": position.samples, "note": note})
    before = engine.fingerprints()
    start = position.step
    if not position.baseline:
        _evaluate_base(job, engine, position)
        yield _log(journal, {"step": 0, "samples": 0, **position.baseline})
    meter = _Meter()
    for step_plan, micro_batches in meter.waited(job.steps(start, packs)):
        if stopped(job, position):
            break
        loss, norm, rate, took = _step(job, engine, step_plan, micro_batches, packs)
        position.step += 1
        position.samples += step_plan.num_samples
        position.tokens += took.tokens
        position.positions += took.positions
        position.train_s += took.seconds
        meter.add(took)
        journal.samples(position.step, [s.sample_id for micro in micro_batches for s in micro])
        last = position.step == job.plan.total_steps
        if position.step % job.config.train.logging_steps == 0 or last:
            line = {
                "step": position.step,
                "samples": position.samples,
                "tokens": position.tokens,
                "epoch": position.samples / job.plan.sets.samples(1),
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                **meter.take(),
            }
            yield _log(journal, line)
        at_rung = position.step in (job.rungs or ())
        evaluated = last or at_rung or _due(position.step, job.plan.eval_steps)
        if evaluated:
            position.latest = evaluate_split(job, engine, "eval")
            compare(job, position)
            yield _log(
                journal, {"step": position.step, "samples": position.samples, **position.latest}
            )
        if _saved_here(job, position, evaluated):
            keep = job.config.train.save_total_limit
            checkpoint.save(engine, job.run_dir, position, job.config_hash, keep)
    if position.step > start:
        unmoved = check_changed(engine, before)
        if unmoved:
            note = f"{len(unmoved)} declared parameters did not change, first {unmoved[0]}"
            yield _log(journal, {"step": position.step, "samples": position.samples, "note": note})
    result = finish(job, engine, position)
    journal.result(result)
    yield result


def _restore(job: Job, engine: Engine) -> tuple[Position, list[str]]:
    found = checkpoint.newest(job.run_dir, job.config_hash) if engine.rank == 0 else (None, [])
    folder, notes = engine.gather(found)[0]
    if folder is None:
        return Position(), notes
    position = checkpoint.read_position(folder)
    engine.load_state(checkpoint.read_state(folder), position.step)
    return position, [*notes, f"continued from step {position.step}"]


def _evaluate_base(job: Job, engine: Engine, position: Position) -> None:
    # Virtual tokens that are not trained yet say something else than the model by itself.
    with virtual_tokens.without(engine.module):
        position.baseline = position.latest = evaluate_split(job, engine, "eval")
        if job.rungs is None:
            position.base_test = evaluate_split(job, engine, "test")
    check_measured(job, position.baseline)


def _step(
    job: Job,
    engine: Engine,
    step_plan: StepPlan,
    micro_batches: list[list[Sample]],
    packs: bool,
) -> tuple[float, float, float, _Took]:
    started = time.perf_counter()
    count_targets = job.task.num_targets
    targets = sum(count_targets(s.labels.tolist()) for micro in micro_batches for s in micro)
    tokens = sum(len(s.input_ids) for micro in micro_batches for s in micro)
    rows = [micro.rows for micro in step_plan.micro_batches]
    batches = [
        job.collate.packed(samples, mine) if packs else job.collate(samples, step_plan.step)
        for samples, mine in zip(micro_batches, rows, strict=True)
    ]
    positions = sum(batch["input_ids"].numel() for batch in batches)
    counts = engine.sum([targets, tokens, positions])
    step_targets, tokens, positions = (int(count) for count in counts)
    if step_targets == 0:
        raise TrainError(f"Step {step_plan.step + 1} has no target to train on.")
    local_loss = 0.0
    for index, batch in enumerate(batches):
        _seed_dropout(job.config.train.seed, step_plan.step, index, engine.rank)
        logits = engine.forward(batch)
        labels = batch["labels"].to(logits.device)
        loss_sum = job.task.loss(logits, labels, job.loss_settings)
        engine.backward(loss_sum, step_targets, last=index == len(batches) - 1)
        local_loss += loss_sum.item()
    loss = engine.sum([local_loss])[0] / step_targets
    plan = job.plan
    rate = learning_rate(
        step_plan.step,
        peak=plan.learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        lr_scheduler_type=job.config.train.lr_scheduler_type,
    )
    if not math.isfinite(loss):
        raise TrainError(
            f"The loss of step {step_plan.step + 1} is {loss} at learning rate {rate:g}.",
            "Lower train.learning_rate or raise train.warmup_steps, then add --fresh.",
        )
    norm = engine.step(rate, step_plan.step)
    return loss, norm, rate, _Took(tokens, positions, time.perf_counter() - started)


def _seed_dropout(*parts: int) -> None:
    """Key dropout by place, not by history: an interrupted run then equals an unbroken one."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _saved_here(job: Job, position: Position, evaluated: bool) -> bool:
    last = position.step == job.plan.total_steps
    if job.rungs is not None:
        # It keeps no model: a checkpoint serves the case that its process is lost.
        return not last and (position.step in job.rungs or _due(position.step, job.plan.save_steps))
    is_best = evaluated and position.best_step == position.step
    return last or is_best or stopped(job, position) or _due(position.step, job.plan.save_steps)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _log(journal: Journal, line: dict[str, Any]) -> Metrics:
    journal.metrics(line)
    return line


@dataclass(frozen=True)
class _Took:
    """What steps took, over all ranks."""

    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0


class _Meter:
    """What training came to since the last reading, and what it waited for."""

    def __init__(self) -> None:
        self._took, self._wait_s = _Took(), 0.0

    def waited(self, steps: Steps) -> Steps:
        """Yield the steps; the time each took to come counts as waiting for data."""
        steps = iter(steps)
        while True:
            asked_s = time.perf_counter()
            step = next(steps, None)
            self._wait_s += time.perf_counter() - asked_s
            if step is None:
                return
            yield step

    def add(self, took: _Took) -> None:
        before = self._took
        self._took = _Took(
            before.tokens + took.tokens,
            before.positions + took.positions,
            before.seconds + took.seconds,
        )

    def take(self) -> Metrics:
        took, wait_s = self._took, self._wait_s
        self._took, self._wait_s = _Took(), 0.0
        return {
            "tokens_per_s": took.tokens / took.seconds if took.seconds else 0.0,
            "padding": 1 - took.tokens / took.positions if took.positions else 0.0,
            "data_wait": wait_s / (took.seconds + wait_s),
        }
