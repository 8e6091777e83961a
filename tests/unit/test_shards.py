"""Shards: what is written is what is read, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distft import plugin
from distft.data import shards as module
from distft.data.manifest import Manifest, TokenizerInfo, load_manifest, save_manifest
from distft.data.order import StepPlan
from distft.data.pack import MicroBatch
from distft.data.shards import ShardWriter, SplitReader, encoded_schema, read_steps, schema
from distft.errors import DataError

TASK = plugin.tasks()["seq_cls"]


def row(i: int) -> dict[str, Any]:
    ids = list(range(i, i + 1 + i % 5))
    labels, second = [i % 3], i % 5 // 2
    return {
        "input_ids": ids,
        "labels": labels,
        "second": second,
        "truncated": i % 7 == 0,
        "targets": 1,
    }


def make(root: Path, rows: int, per_call: int = 100) -> Manifest:
    writer = ShardWriter(root, "train", TASK, 3)
    for first in range(0, rows, per_call):
        table = [row(i) for i in range(first, min(first + per_call, rows))]
        writer.add(pa.Table.from_pylist(table, schema=encoded_schema(TASK)))
    manifest = Manifest(
        key="k",
        task="seq_cls",
        format="classification",
        columns={},
        labels=["a", "b", "c"],
        cutoff_len=8,
        tokenizer=TokenizerInfo(name="t", sha256="0"),
        splits={"train": writer.close()},
        dropped={},
        dropped_rows=[],
        sources=[],
    )
    save_manifest(root, manifest)
    return manifest


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", 16)
    monkeypatch.setattr(module, "SHARD_ROWS", 64)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("rows", [1, 16, 64, 65, 200])
@pytest.mark.parametrize("per_call", [1, 64, 200])
def test_what_is_written_is_read(tmp_path: Path, rows: int, per_call: int) -> None:
    info = make(tmp_path, rows, per_call).splits["train"]
    assert info.rows == rows
    assert info.row_groups == [16] * (rows // 16) + [rows % 16] * (rows % 16 > 0)
    assert [shard.rows for shard in info.shards] == [64] * (rows // 64) + [rows % 64] * (
        rows % 64 > 0
    )
    assert info.tokens == sum(1 + i % 5 for i in range(rows))
    assert info.truncated == sum(i % 7 == 0 for i in range(rows))
    assert info.max_length == min(rows, 5)
    assert info.label_counts == [sum(i % 3 == label for i in range(rows)) for label in range(3)]
    reader = SplitReader(tmp_path, load_manifest(tmp_path), "train")
    ids = np.random.default_rng(0).permutation(rows).tolist()
    assert reader.lengths(ids).tolist() == [1 + i % 5 for i in ids]
    for sample, i in zip(reader.read(ids), ids, strict=True):
        assert sample.sample_id == i
        assert sample.input_ids.tolist() == row(i)["input_ids"]
        assert sample.labels.tolist() == [i % 3]
        assert sample.second == i % 5 // 2
        assert sample.input_ids.dtype == sample.labels.dtype == np.int32


@pytest.mark.usefixtures("small_shards")
def test_files_hold_the_documented_columns(tmp_path: Path) -> None:
    manifest = make(tmp_path, 100)
    first, second = manifest.splits["train"].shards
    file = pq.ParquetFile(tmp_path / second.file)
    assert file.schema_arrow.equals(schema(TASK))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 16, 4]
    table = pq.read_table(tmp_path / second.file)
    assert table["sample_id"].to_pylist() == list(range(64, 100))
    assert first.bytes == (tmp_path / first.file).stat().st_size


@pytest.mark.usefixtures("small_shards")
def test_the_cache_stays_within_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = module._GroupCache(limit_bytes=1500, limit_groups=9)
    monkeypatch.setattr(module, "_CACHE", cache)
    reader = SplitReader(tmp_path, make(tmp_path, 200), "train")
    for i in [*range(200), *range(0, 200, 16)]:
        assert reader.read([i])[0].input_ids[0] == i
        assert cache.size_bytes <= 1500
        assert len(cache._groups) <= 9
    held = sum(group.size_bytes for group in cache._groups.values())
    assert cache.size_bytes == held > 0


def test_an_id_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    reader = SplitReader(tmp_path, make(tmp_path, 10), "train")
    for ids in ([10], [-1]):
        with pytest.raises(IndexError, match=r"0\.\.9"):
            reader.read(ids)


def test_read_steps_keeps_empty_micro_batches(tmp_path: Path) -> None:
    reader = SplitReader(tmp_path, make(tmp_path, 10), "train")
    plan = StepPlan(0, 0, 3, [MicroBatch([4, 2], [2]), MicroBatch([], []), MicroBatch([9], [1])])
    ((same, batches),) = read_steps(reader, [plan])
    assert same is plan
    assert [[sample.sample_id for sample in batch] for batch in batches] == [[4, 2], [], [9]]


def test_manifests_that_lie_are_refused(tmp_path: Path) -> None:
    manifest = make(tmp_path, 10)
    assert load_manifest(tmp_path) == manifest
    shard = tmp_path / manifest.splits["train"].shards[0].file
    content = bytearray(shard.read_bytes())
    content[100] ^= 255
    shard.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256"):
        load_manifest(tmp_path)
    assert load_manifest(tmp_path, verify=False) == manifest
    shard.write_bytes(content + b"x")
    with pytest.raises(DataError, match="bytes, its manifest says"):
        load_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match="is missing") as caught:
        load_manifest(tmp_path)
    assert str(tmp_path) in caught.value.hint
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(DataError, match="no manifest"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds no prepared data"):
        load_manifest(tmp_path)
