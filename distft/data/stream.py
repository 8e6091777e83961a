"""Step plans -> steps with their samples, read ahead by Ray Data.

The dataset is one of plans, not of samples: Ray Data decides when and where something is read,
never what a step holds or in which order steps come.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from distft.data.order import StepPlan
from distft.data.shards import Sample, label_type, open_split
from distft.plugin import Task

_SEGMENT_STEPS = 1000
_BLOCK_SAMPLES = 256
"""Samples one Ray task reads; fewer would cost more in tasks than in reading."""
_PREFETCHED_BLOCKS = 4
_READERS = 2


def stream(
    root: Path, split: str, plans: Iterable[StepPlan]
) -> Iterator[tuple[StepPlan, list[list[Sample]]]]:
    """Yield steps with their samples, in the order of the plans.

    Works in any process connected to Ray, a Ray Train worker included. Memory is bounded by a
    segment of 1,000 plans and the blocks read ahead.

    Args:
        root: Folder of the verified shards; the reading processes must see it.
        split: train, eval or test.
        plans: The steps, such as `plan_steps` yields from the resume step on.

    Yields:
        Each plan with its micro-batches' samples; the same as `read_steps`.
    """
    plans = iter(plans)
    while segment := list(islice(plans, _SEGMENT_STEPS)):
        todo = iter(segment)
        for table in _dataset(root, split, segment):
            for i in range(table.num_rows):
                plan = next(todo)
                yield plan, _samples(table, i, plan)


def _ordered_context() -> ray.data.DataContext:
    """Return settings for a dataset whose blocks keep their order; it draws no progress bars."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns that the bars are off, which was asked for.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    return context


def _dataset(root: Path, split: str, segment: list[StepPlan]) -> Iterable[pa.Table]:
    samples = sum(len(plan.ids) for plan in segment)
    steps = max(1, _BLOCK_SAMPLES * len(segment) // max(1, samples))
    blocks = [segment[i : i + steps] for i in range(0, len(segment), steps)]
    items = [{"plans": json.dumps([[p.step, p.ids] for p in block])} for block in blocks]
    with ray.data.DataContext.current(_ordered_context()):
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _read,
            fn_args=(str(root), split),
            batch_size=None,
            batch_format="pyarrow",
            # Reading is short and the training workers may hold every CPU: asking Ray for one
            # would wait for ever.
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=_READERS),
        )
        tables: Iterable[pa.Table] = dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCHED_BLOCKS
        )
    return tables


def _schema(task: Task) -> pa.Schema:
    """Return the columns of one row a step: the samples of all its micro-batches, end to end."""
    return pa.schema(
        [
            ("step", pa.int64()),
            ("input_ids", pa.list_(pa.int32())),
            ("input_lengths", pa.list_(pa.int32())),
            ("labels", pa.list_(label_type(task))),
            ("label_lengths", pa.list_(pa.int32())),
            ("second", pa.list_(pa.int32())),
        ]
    )


def _read(batch: pa.Table, root: str, split: str) -> pa.Table:
    """Read the steps of a block, in a Ray task."""
    reader = open_split(Path(root), split)
    rows: list[dict[str, Any]] = []
    for text in batch["plans"].to_pylist():
        for step, ids in json.loads(text):
            samples = reader.read(ids)
            rows.append(
                {
                    "step": step,
                    "input_ids": _join([sample.input_ids for sample in samples]),
                    "input_lengths": [len(sample.input_ids) for sample in samples],
                    "labels": _join([sample.labels for sample in samples]),
                    "label_lengths": [len(sample.labels) for sample in samples],
                    "second": [sample.second for sample in samples],
                }
            )
    return pa.Table.from_pylist(rows, schema=_schema(reader.task))


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int32)


def _samples(table: pa.Table, i: int, plan: StepPlan) -> list[list[Sample]]:
    if table["step"][i].as_py() != plan.step:
        raise RuntimeError(f"step {plan.step} was planned, {table['step'][i]} was read")
    inputs, labels = (
        np.split(_cell(table[name], i), np.cumsum(_cell(table[lengths], i))[:-1])
        for name, lengths in (("input_ids", "input_lengths"), ("labels", "label_lengths"))
    )
    samples = iter(zip(inputs, labels, _cell(table["second"], i).tolist(), strict=True))
    return [[Sample(one, *next(samples)) for one in micro.ids] for micro in plan.micro_batches]


def _cell(column: pa.ChunkedArray, i: int) -> np.ndarray:
    values: np.ndarray = column[i].values.to_numpy()
    return values
