"""Parquet shards of tokenized samples: the writer, and the one reader of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distft import plugin
from distft.data.manifest import Manifest, Shard, SplitInfo, file_sha256, load_manifest
from distft.data.order import WINDOW, StepPlan
from distft.plugin import Task

GROUP_ROWS = 256
SHARD_ROWS = 65_536
SHARD_TOKENS = 16 << 20
"""A shard ends where either is reached: what an interruption can lose is bounded."""
CACHE_BYTES, CACHE_GROUPS = 512 << 20, 3 * WINDOW
"""Decoded row groups one process keeps: those of a window of the order, and of mixed sets' too."""


def schema(task: Task) -> pa.Schema:
    """Return the columns of a shard.

    Args:
        task: Whose samples; the labels of a vector are float32, all others ids.

    Returns:
        `sample_id`, `input_ids`, `labels`, `length` in tokens, `second` as in `Encoded`.
    """
    return pa.schema(
        [
            ("sample_id", pa.int64()),
            ("input_ids", pa.list_(pa.int32())),
            ("labels", pa.list_(label_type(task))),
            ("length", pa.int32()),
            ("second", pa.int32()),
        ]
    )


def encoded_schema(task: Task) -> pa.Schema:
    """Return the columns a writer takes.

    Args:
        task: Whose samples.

    Returns:
        `Encoded` as columns, `targets`, and where the row stood (see `finished.place_of`), which
        only grows; null where nothing is ever interrupted.
    """
    return pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("labels", pa.list_(label_type(task))),
            ("second", pa.int32()),
            ("truncated", pa.bool_()),
            ("ended", pa.bool_()),
            ("targets", pa.int32()),
            ("place", pa.int64()),
        ]
    )


def label_type(task: Task) -> pa.DataType:
    """Return the Arrow type of one label.

    Args:
        task: Whose samples.

    Returns:
        float32 for the labels of a vector, int32 for ids.
    """
    return pa.float32() if task.labels == "vector" else pa.int32()


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample; its arrays are read-only."""

    sample_id: int
    input_ids: np.ndarray
    """int32."""
    labels: np.ndarray
    """int32, or float32 where the task's labels are a vector."""
    second: int = 0
    """As in `Encoded`."""


class ShardWriter:
    """Writes one split, or one training set of several, in the order samples come."""

    def __init__(
        self,
        root: Path,
        split: str,
        task: Task,
        classes: int,
        begun: tuple[SplitInfo, int] | None = None,
        after: ShardWriter | None = None,
    ) -> None:
        self._after = after
        self._root = root
        self._split = split
        self._task = task
        self._schema = schema(task)
        self._columns = encoded_schema(task).names
        self._info, self.place = begun or (SplitInfo(label_counts=[0] * classes), -1)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._groups: list[int] = []
        self._shard_tokens = 0
        self.finished = self._info.model_copy(deep=True)
        """What the finished shards hold; `place` is that of the last row in them."""

    @property
    def first(self) -> int:
        """Id of the first sample: 0, or where the set before ends."""
        return self._after.end if self._after else 0

    @property
    def end(self) -> int:
        """Id after that of the last sample taken."""
        return self.first + self._info.rows + self._waiting_rows

    def add(self, table: pa.Table) -> bool:
        """Take the next samples; whole row groups are written at once.

        Args:
            table: Columns of `encoded_schema`.

        Returns:
            Whether a shard was finished.
        """
        shards = len(self._info.shards)
        if table.num_rows:
            self._waiting.append(table.select(self._columns))
            self._waiting_rows += table.num_rows
            self._write(self._waiting_rows // GROUP_ROWS * GROUP_ROWS)
        return len(self._info.shards) > shards

    def close(self) -> SplitInfo:
        """Write what waits and finish the last shard.

        Returns:
            What the manifest says of the split.
        """
        self._write(self._waiting_rows)
        self._finish_shard()
        self._info.mean_length = self._info.tokens / self._info.rows if self._info.rows else 0.0
        return self._info

    def _write(self, rows: int) -> None:
        if not rows:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        for start in range(0, rows, GROUP_ROWS):
            self._write_group(table.slice(start, min(GROUP_ROWS, rows - start)))
        self._waiting = [table.slice(rows)]
        self._waiting_rows -= rows

    def _write_group(self, group: pa.Table) -> None:
        first = self.first + self._info.rows
        lengths = pc.list_value_length(group["input_ids"]).cast(pa.int32())
        self._count(group, lengths)
        ids = pa.array(range(first, first + group.num_rows), pa.int64())
        columns = [ids, group["input_ids"], group["labels"], lengths, group["second"]]
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path(), self._schema, compression="zstd")
        written = pa.table(columns, schema=self._schema)
        self._writer.write_table(written, row_group_size=GROUP_ROWS)
        self._groups.append(group.num_rows)
        if sum(self._groups) >= SHARD_ROWS or self._shard_tokens >= SHARD_TOKENS:
            self._finish_shard(group["place"][-1].as_py())

    def _count(self, group: pa.Table, lengths: pa.ChunkedArray) -> None:
        info, tokens = self._info, pc.sum(lengths).as_py()
        self._shard_tokens += tokens
        info.rows += group.num_rows
        info.tokens += tokens
        info.targets += pc.sum(group["targets"]).as_py()
        info.truncated += pc.sum(group["truncated"]).as_py()
        info.ended += pc.sum(group["ended"]).as_py() or 0
        info.max_length = max(info.max_length, pc.max(lengths).as_py())
        classes = len(info.label_counts)
        if not classes:
            return
        values = pc.list_flatten(group["labels"]).to_numpy()
        if self._task.labels == "vector":
            found = values.reshape(-1, classes).sum(axis=0)
        else:
            found = np.bincount(values[values >= 0], minlength=classes)
        info.label_counts = [
            before + int(more) for before, more in zip(info.label_counts, found, strict=True)
        ]

    def _path(self) -> Path:
        return self._root / f"{self._split}-{len(self._info.shards):05d}.parquet"

    def _finish_shard(self, place: int | None = None) -> None:
        if self._writer is None:
            return
        self._writer.close()
        path = self._path()
        self._info.shards.append(
            Shard(
                file=path.name,
                rows=sum(self._groups),
                row_groups=self._groups,
                bytes=path.stat().st_size,
                sha256=file_sha256(path),
            )
        )
        self._writer, self._groups, self._shard_tokens = None, [], 0
        self.finished = self._info.model_copy(deep=True)
        self.place = self.place if place is None else place


@dataclass(frozen=True, eq=False)
class _Group:
    """A decoded row group: all its ids in one array, cut by offsets."""

    input_ids: np.ndarray
    input_offsets: np.ndarray
    labels: np.ndarray
    label_offsets: np.ndarray
    second: np.ndarray

    @property
    def size_bytes(self) -> int:
        return int(self.input_ids.nbytes + self.labels.nbytes + 2 * self.input_offsets.nbytes)

    def sample(self, sample_id: int, i: int) -> Sample:
        return Sample(
            sample_id,
            self.input_ids[self.input_offsets[i] : self.input_offsets[i + 1]],
            self.labels[self.label_offsets[i] : self.label_offsets[i + 1]],
            int(self.second[i]),
        )


class _GroupCache:
    """Least recently used decoded row groups of this process, bounded in bytes and number."""

    def __init__(self, limit_bytes: int, limit_groups: int) -> None:
        self.limit_bytes, self.limit_groups = limit_bytes, limit_groups
        self.size_bytes = 0
        self._groups: OrderedDict[tuple[str, int], _Group] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: pq.ParquetFile, path: str, number: int) -> _Group:
        with self._lock:
            key = (path, number)
            group = self._groups.get(key)
            if group is None:
                group = _decode(file, number)
                self._groups[key] = group
                self.size_bytes += group.size_bytes
                while len(self._groups) > 1 and (
                    self.size_bytes > self.limit_bytes or len(self._groups) > self.limit_groups
                ):
                    self.size_bytes -= self._groups.popitem(last=False)[1].size_bytes
            self._groups.move_to_end(key)
            return group


_CACHE = _GroupCache(CACHE_BYTES, CACHE_GROUPS)


def _decode(file: pq.ParquetFile, number: int) -> _Group:
    columns = ["input_ids", "labels", "second"]
    table = file.read_row_group(number, columns=columns, use_threads=False)
    arrays: list[np.ndarray] = []
    for name in ("input_ids", "labels"):
        column = table[name].combine_chunks()
        offsets = column.offsets.to_numpy()
        arrays += [column.values.to_numpy(zero_copy_only=True), offsets]
    ids, id_offsets, labels, label_offsets = arrays
    return _Group(ids, id_offsets, labels, label_offsets, table["second"].to_numpy())


class SplitReader:
    """Random access to the samples of one split by their id."""

    def __init__(self, root: Path, manifest: Manifest, split: str) -> None:
        info = manifest.splits[split]
        self.rows = info.rows
        self.task = plugin.tasks()[manifest.task]
        """Whose samples they are."""
        self.row_groups: list[int] = info.row_groups
        """Rows of each row group, in the order of ids."""
        self._paths = [str(root / shard.file) for shard in info.shards]
        self._places = [
            (shard, number)
            for shard, entry in enumerate(info.shards)
            for number in range(len(entry.row_groups))
        ]
        self._ends = np.cumsum(np.asarray(self.row_groups, dtype=np.int64))
        self._files: dict[int, pq.ParquetFile] = {}
        self._lengths: np.ndarray | None = None

    def lengths(self, ids: Sequence[int]) -> np.ndarray:
        """Return the tokens of each sample.

        Args:
            ids: Sample ids.

        Returns:
            int32, one per id.
        """
        if self._lengths is None:
            columns = [pq.read_table(path, columns=["length"])["length"] for path in self._paths]
            arrays = [column.to_numpy() for column in columns]
            self._lengths = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        return self._lengths[np.asarray(ids, dtype=np.int64)]

    def read(self, ids: Sequence[int]) -> list[Sample]:
        """Return samples in the order asked for.

        Args:
            ids: Sample ids, 0 to rows - 1.

        Returns:
            One sample per id.

        Raises:
            IndexError: There is no sample of an id.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.rows):
            raise IndexError(f"sample ids must lie in 0..{self.rows - 1}, got {list(ids)}")
        groups = np.searchsorted(self._ends, wanted, side="right")
        return [
            self._group(int(group)).sample(
                int(one), int(one - self._ends[group] + self.row_groups[group])
            )
            for one, group in zip(wanted, groups, strict=True)
        ]

    def _group(self, group: int) -> _Group:
        shard, number = self._places[group]
        if shard not in self._files:
            self._files[shard] = pq.ParquetFile(self._paths[shard])
        return _CACHE.get(self._files[shard], self._paths[shard], number)


@lru_cache(maxsize=16)
def open_split(root: Path, split: str) -> SplitReader:
    """Return this process's reader of a split; the shards are trusted, verify them before.

    Args:
        root: Folder of the shards.
        split: train, eval or test.

    Returns:
        The reader, made once per process.
    """
    return SplitReader(root, load_manifest(root, verify=False), split)


def read_steps(
    reader: SplitReader, plans: Iterable[StepPlan]
) -> Iterator[tuple[StepPlan, list[list[Sample]]]]:
    """Yield steps with their samples, read in this process.

    Args:
        reader: The split.
        plans: The steps in order.

    Yields:
        Each plan with its micro-batches' samples.
    """
    for plan in plans:
        yield plan, [reader.read(micro.ids) for micro in plan.micro_batches]
