"""The two passes over the rows as a pool's workers run them: chunks -> what is surveyed, token ids.

Loads no torch: every worker loads this file, and takes the tokenizer ready-made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from distft import plugin
from distft.data import finished
from distft.data.shards import encoded_schema
from distft.data.source import Chunk
from distft.data.split import Part
from distft.data.survey import Reading, RowReader, surveyed
from distft.data.tokenize import encode_rows
from distft.plugin import EncodeContext, Encoded, Task, TrainsNothing, UnusableRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TABLE_ROWS = 1024
_BATCH_CHARACTERS = 1 << 18
"""Of rows tokenized together: what a tokenizer makes of a text is many times as large."""

_SURVEYED = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.binary()),
        ("stratum", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("signature", pa.binary()),
        ("changes", pa.string()),
        ("reason", pa.string()),
        ("error", pa.string()),
    ]
)
_FOUND = [
    ("row", pa.int64()),
    ("split", pa.int8()),
    ("reason", pa.string()),
    ("untrained", pa.bool_()),
]
"""What comes with each tokenized sample."""


@dataclass(frozen=True)
class Job:
    """What both passes need; goes to the workers."""

    task: str
    readers: Mapping[Part, RowReader]
    origins: list[Part]
    """What named the file of each chunk."""
    chunks: list[Chunk]
    stop_at_bad_row: bool

    def reader(self, number: int) -> RowReader:
        """Return what reads a chunk."""
        return self.readers[self.origins[number]]


@dataclass(frozen=True)
class Surveyor:
    """The first pass: a chunk -> what is to be known of its rows."""

    job: Job

    def __call__(self, number: int) -> Iterator[pa.Table]:
        """Yield what is to be known of every row: its key, classes, or why it cannot be used.

        Args:
            number: Of the chunk.

        Yields:
            Tables of at most 1,024 rows.
        """
        job = self.job
        rows = surveyed(job.reader(number), plugin.tasks()[job.task], job.chunks[number])
        while held := list(islice(rows, _TABLE_ROWS)):
            columns = {key: [row.get(key) for row in held] for key in _SURVEYED.names}
            yield _table(columns, _SURVEYED)


class Encoder:
    """The second pass: a chunk -> token ids.

    Args:
        job: Where the rows lie and how they are read.
        tokenizer: Ready-made.
        context: Longest sample and class names.
    """

    def __init__(
        self, job: Job, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
    ) -> None:
        self.job, self._tokenizer, self._context = job, tokenizer, context

    def __call__(self, number: int, codes: bytes) -> Iterator[pa.Table]:
        """Yield the tokens of rows.

        Args:
            number: Of the chunk.
            codes: For every row of it 0 where it is not wanted, else what `split` is to hold.

        Yields:
            Tables of at most 1,024 rows.
        """
        readings = self.job.reader(number).read(self.job.chunks[number])
        wanted = (
            (finished.place_of(number, at), code, reading)
            for at, (code, reading) in enumerate(zip(codes, readings, strict=True))
            if code and reading.value is not None
        )
        for held in _batches(wanted):
            yield self._table(*zip(*held, strict=True))

    @cached_property
    def _task(self) -> Task:
        return plugin.tasks()[self.job.task]

    @cached_property
    def _ends(self) -> set[int]:
        return self._task.ends(self._tokenizer) if self._task.ends else set()

    @cached_property
    def _schema(self) -> pa.Schema:
        return pa.schema([*_FOUND, *encoded_schema(self._task)])

    def _table(
        self, places: Sequence[int], codes: Sequence[int], readings: Sequence[Reading]
    ) -> pa.Table:
        rows = [reading.value for reading in readings if reading.value is not None]
        found = encode_rows(rows, self._task, self._tokenizer, self._context)
        reasons = [str(one) if isinstance(one, UnusableRow) else None for one in found]
        samples = [one if isinstance(one, Encoded) else _NOTHING for one in found]
        columns: dict[str, Any] = {
            "place": places,
            "row": [reading.row for reading in readings],
            "split": codes,
            "reason": reasons,
            "untrained": [isinstance(one, TrainsNothing) for one in found],
            "input_ids": [one.input_ids for one in samples],
            "labels": [one.labels for one in samples],
            "second": [one.second for one in samples],
            "truncated": [one.truncated for one in samples],
            "ended": [not self._ends.isdisjoint(one.labels) for one in samples],
            "targets": [self._task.num_targets(one.labels) for one in samples],
        }
        return _table(columns, self._schema)


_NOTHING = Encoded([], [])


def _batches(
    wanted: Iterable[tuple[int, int, Reading]],
) -> Iterator[list[tuple[int, int, Reading]]]:
    """Yield rows together, at most 1,024 and, but for a longer one alone, so many characters."""
    held: list[tuple[int, int, Reading]] = []
    characters = 0
    for one in wanted:
        more = _characters(one[2].value)
        if held and (len(held) == _TABLE_ROWS or characters + more > _BATCH_CHARACTERS):
            yield held
            held, characters = [], 0
        held.append(one)
        characters += more
    if held:
        yield held


def _characters(value: object) -> int:
    """Return about how many characters of text there are in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table([_array(columns[one.name], one.type) for one in schema], schema=schema)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return a column; lists of numbers, which hold nearly all there is, by way of one array."""
    if not pa.types.is_list(kind) or not pa.types.is_primitive(kind.value_type):
        return pa.array(values, kind)
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    numbers = np.fromiter(chain.from_iterable(values), kind.value_type.to_pandas_dtype(), ends[-1])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(numbers), type=kind)
