"""What Ray Data reads ahead is exactly what the plans say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distft import plugin
from distft.data import shards as shards_module
from distft.data import stream as module
from distft.data.manifest import Manifest, TokenizerInfo, load_manifest, save_manifest
from distft.data.order import StepPlan, plan_steps
from distft.data.pack import Budget
from distft.data.shards import (
    Sample,
    ShardWriter,
    SplitReader,
    encoded_schema,
    open_split,
    read_steps,
)
from distft.data.stream import stream

Step = tuple[StepPlan, list[list[Sample]]]

ROWS = 1500


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("shards"), "sft")


def written(root: Path, name: str, lengths: Sequence[int] | None = None) -> Path:
    """Write samples of a task, 1,500 or of these lengths; the first token of each is its id."""
    task = plugin.tasks()[name]
    writer = ShardWriter(root, "train", task, 0)
    rng = np.random.default_rng(7)
    lengths = rng.integers(2, 41, ROWS).tolist() if lengths is None else lengths
    rows = []
    for i, length in enumerate(lengths):
        ids = [i, *rng.integers(0, 1000, length - 1).tolist()]
        labels = [i / 7] if task.labels == "vector" else [-100] * len(ids)
        second = len(ids) // 2 if task.labels == "vector" else 0
        row = {"input_ids": ids, "labels": labels, "second": second, "truncated": False}
        rows.append({**row, "targets": 1})
    writer.add(pa.Table.from_pylist(rows, schema=encoded_schema(task)))
    manifest = Manifest(
        key="k",
        task=name,
        format="messages",
        columns={},
        labels=[],
        cutoff_len=64,
        tokenizer=TokenizerInfo(name="t", sha256="0"),
        splits={"train": writer.close()},
        dropped={},
        dropped_rows=[],
        sources=[],
    )
    save_manifest(root, manifest)
    return root


def plans(
    reader: SplitReader,
    world_size: int,
    rank: int,
    start_step: int,
    total_steps: int,
    global_batch_size: int = 16,
):
    return plan_steps(
        seed=3,
        row_groups=reader.row_groups,
        lengths=reader.lengths,
        global_batch_size=global_batch_size,
        budget=Budget(micro_batch_tokens=160, row_tokens=40),
        world_size=world_size,
        rank=rank,
        start_step=start_step,
        total_steps=total_steps,
    )


def assert_same(got: list[Step], wanted: list[Step]) -> None:
    assert len(got) == len(wanted)
    for (plan, batches), (expected, expected_batches) in zip(got, wanted, strict=True):
        assert plan == expected
        assert [len(batch) for batch in batches] == [len(batch) for batch in expected_batches]
        for sample, other in zip(chain(*batches), chain(*expected_batches), strict=True):
            assert sample.sample_id == other.sample_id == other.input_ids[0]
            np.testing.assert_array_equal(sample.input_ids, other.input_ids)
            np.testing.assert_array_equal(sample.labels, other.labels)
            assert sample.labels.dtype == other.labels.dtype
            assert sample.second == other.second


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("world_size", "rank", "start"), [(1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 1, 77)]
)
def test_stream_equals_reading_in_this_process(
    shards: Path, world_size: int, rank: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1,500 rows make 94 steps an epoch, the last one short; segments of 40 cross the epoch.
    monkeypatch.setattr(module, "_SEGMENT_STEPS", 40)
    reader = open_split(shards, "train")
    wanted = list(read_steps(reader, plans(reader, world_size, rank, start, 100)))
    got = list(stream(shards, "train", plans(reader, world_size, rank, start, 100)))
    assert_same(got, wanted)


@pytest.mark.usefixtures("ray_cluster")
def test_numbers_and_where_a_second_text_begins_come_through(tmp_path: Path) -> None:
    reader = open_split(written(tmp_path, "regression"), "train")
    wanted = list(read_steps(reader, plans(reader, 2, 1, 0, 8)))
    assert any(sample.second for _, batches in wanted for sample in chain(*batches))
    assert_same(list(stream(tmp_path, "train", plans(reader, 2, 1, 0, 8))), wanted)


LAYOUT: dict[str, Any] = {
    "lengths": [2 + 7 * i % 39 for i in range(53)],
    "group_rows": 4,
    "shard_rows": 20,
    "shard_tokens": 150,
    "batch": 6,
    "worlds": (4, 2),
    "steps": 20,
    "stop": 7,
}
"""Rows of a few tokens or many, in shards that end at either limit: uneven ones, the last short."""

layouts = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(2, 40), min_size=1, max_size=120),
        "group_rows": st.integers(1, 12),
        "shard_rows": st.integers(1, 40),
        "shard_tokens": st.integers(1, 400),
        "batch": st.integers(1, 16),
        "worlds": st.tuples(*[st.sampled_from([1, 2, 4])] * 2),
        "steps": st.integers(1, 25),
        "stop": st.integers(0, 25),
    }
)


def check_layout(root: Path, layout: dict[str, Any]) -> None:
    """Stream to a step, then on at another world size; compare with reading on without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("group_rows", "shard_rows", "shard_tokens"):
            patch.setattr(shards_module, name.upper(), layout[name])
        # Their seams must not show either.
        patch.setattr(module, "_SEGMENT_STEPS", 10)
        patch.setattr(module, "_BLOCK_SAMPLES", 16)
        written(root, "sft", layout["lengths"])
        reader = SplitReader(root, load_manifest(root), "train")
        batch, rows, end = layout["batch"], reader.rows, layout["steps"]
        stop = min(layout["stop"], end)
        log: list[tuple[int, list[int]]] = []
        for world, *part in zip(layout["worlds"], (0, stop), (stop, end), strict=True):
            ranks = [plans(reader, world, rank, *part, batch) for rank in range(world)]
            streams = [list(stream(root, "train", each)) for each in ranks]
            for together in zip(*streams, strict=True):
                samples = [one for _, batches in together for one in chain(*batches)]
                assert [one.input_ids[0] for one in samples] == [one.sample_id for one in samples]
                for one in samples:
                    assert len(one.input_ids) == layout["lengths"][one.sample_id]
                (step,) = {plan.step for plan, _ in together}
                log.append((step, sorted(one.sample_id for one in samples)))
    unbroken = plans(reader, 1, 0, 0, end, batch)
    assert log == [(plan.step, sorted(plan.ids)) for plan in unbroken]
    an_epoch = -(-rows // batch)
    for first in range(0, end - an_epoch + 1, an_epoch):
        ids = [one for _, step in log[first : first + an_epoch] for one in step]
        assert sorted(ids) == list(range(rows))


@pytest.mark.usefixtures("ray_cluster")
def test_a_stream_stopped_and_rebuilt_at_another_world_size_is_the_unbroken_one(
    tmp_path: Path,
) -> None:
    check_layout(tmp_path, LAYOUT)
    shards = load_manifest(tmp_path).splits["train"].shards
    assert len({shard.rows for shard in shards}) > 1
    assert 53 % LAYOUT["batch"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(layout=layouts)
def test_any_shards_and_any_stop_give_the_unbroken_stream(
    tmp_path_factory: pytest.TempPathFactory, layout: dict[str, Any]
) -> None:
    # A folder each: readers are kept by its name, in Ray's workers too.
    check_layout(tmp_path_factory.mktemp("layout"), layout)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_two_train_workers_that_hold_every_cpu_stream_every_id_once(
    shards: Path, tmp_path: Path
) -> None:
    import json

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    def work(config: dict[str, str]) -> None:
        # Ships by value: the test module is not importable in a worker.
        import json
        from pathlib import Path

        import ray.train

        from distft.data.order import plan_steps
        from distft.data.pack import Budget
        from distft.data.shards import open_split
        from distft.data.stream import stream

        context = ray.train.get_context()
        rank, root = context.get_world_rank(), Path(config["root"])
        reader = open_split(root, "train")
        steps = plan_steps(
            seed=3,
            row_groups=reader.row_groups,
            lengths=reader.lengths,
            global_batch_size=16,
            budget=Budget(micro_batch_tokens=160),
            world_size=2,
            rank=rank,
            start_step=0,
            total_steps=94,
        )
        read = [
            [plan.step, [sample.sample_id for batch in batches for sample in batch]]
            for plan, batches in stream(root, "train", steps)
        ]
        Path(config["out"], f"{rank}.json").write_text(json.dumps(read))

    cpus = int(ray.cluster_resources()["CPU"])
    DataParallelTrainer(
        work,
        train_loop_config={"root": str(shards), "out": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": cpus // 2}),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [step for step, _ in ranks[0]] == list(range(94))
    ids = [one for rank in ranks for _, step in rank for one in step]
    assert sorted(ids) == list(range(ROWS))
    wanted = list(epoch_steps(open_split(shards, "train")))
    got = [set(a) | set(b) for (_, a), (_, b) in zip(*ranks, strict=True)]
    assert got == wanted


def epoch_steps(reader: SplitReader):
    for plan in plans(reader, 1, 0, 0, 94):
        yield set(plan.ids)
