"""What Ray Data reads ahead is exactly what the plans say."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distft import plugin
from distft.data import stream as module
from distft.data.manifest import Manifest, TokenizerInfo, save_manifest
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


def written(root: Path, name: str) -> Path:
    """Write 1,500 samples of a task; the first token of a sample is its id."""
    task = plugin.tasks()[name]
    writer = ShardWriter(root, "train", task, 0)
    rng = np.random.default_rng(7)
    rows = []
    for i in range(ROWS):
        ids = [i, *rng.integers(0, 1000, rng.integers(1, 40)).tolist()]
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


def plans(reader: SplitReader, world_size: int, rank: int, start_step: int, total_steps: int):
    return plan_steps(
        seed=3,
        row_groups=reader.row_groups,
        lengths=reader.lengths,
        global_batch_size=16,
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


@pytest.mark.usefixtures("ray_cluster")
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
        yield {one for micro in plan.micro_batches for one in micro.ids}
