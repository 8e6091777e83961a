"""The two passes over the rows as Ray's processes run them: chunks -> what is surveyed, token ids.

Loads no torch: every process that Ray starts loads this file, and takes the tokenizer ready-made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from distft.errors import DistftError
from distft.plugin import EncodeContext, Encoded, Task, TrainsNothing, UnusableRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TABLE_ROWS = 1024
_BATCH_CHARACTERS = 1 << 18
"""Of rows tokenized together: what a tokenizer makes of a text is many times as large."""

_SURVEYED = pa.schema(
    [
        ("chunk", pa.int32()),
        ("row", pa.int64()),
        ("key", pa.binary()),
        ("stratum", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("signature", pa.binary()),
        ("changes", pa.string()),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("fatal", pa.string()),
    ]
)
_FOUND = [
    ("row", pa.int64()),
    ("split", pa.int8()),
    ("reason", pa.string()),
    ("untrained", pa.bool_()),
    ("fatal", pa.string()),
]
"""What comes with each tokenized sample."""


@dataclass(frozen=True)
class Job:
    """What both passes need; goes to Ray's processes."""

    task: str
    readers: Mapping[Part, RowReader]
    origins: list[Part]
    """What named the file of each chunk."""
    chunks: list[Chunk]
    stop_at_bad_row: bool

    def reader(self, number: int) -> RowReader:
        """Return what reads a chunk."""
        return self.readers[self.origins[number]]


def survey_chunks(batch: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Yield what is to be known of every row: its key, classes, or why it cannot be used.

    Args:
        batch: `chunk`, numbers of the job's chunks.
        job: Where they lie and how they are read.

    Yields:
        Tables of at most 1,024 rows, each of one chunk; `fatal` set where a chunk cannot be read.
    """
    task = plugin.tasks()[job.task]
    for number in batch["chunk"].to_pylist():
        yield from _guarded(number, _surveyed(job, task, number), _SURVEYED)


def _surveyed(job: Job, task: Task, number: int) -> Iterator[pa.Table]:
    rows = surveyed(job.reader(number), task, job.chunks[number])
    while held := list(islice(rows, _TABLE_ROWS)):
        columns = {key: [row.get(key) for row in held] for key in _SURVEYED.names}
        yield _table(columns | {"chunk": [number] * len(held)}, _SURVEYED, len(held))


class Encoder:
    """The second pass, in a Ray actor: chunks -> token ids."""

    def __init__(
        self, job: Job, tokenizer: PreTrainedTokenizerBase, context: EncodeContext
    ) -> None:
        # An actor has one CPU; the backend would start a thread for every one there is.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._job, self._tokenizer, self._context = job, tokenizer, context
        self._task = plugin.tasks()[job.task]
        self._ends = self._task.ends(tokenizer) if self._task.ends else set()
        self._schema = pa.schema([*_FOUND, *encoded_schema(self._task)])

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the tokens of rows.

        Args:
            batch: `chunk`, as for `survey_chunks`, and `codes`, for every row of it 0 where it is
                not wanted, else what `split` is to hold.

        Yields:
            Tables of at most 1,024 rows, at least one for each chunk; `fatal` as there.
        """
        for number, codes in zip(
            batch["chunk"].to_pylist(), batch["codes"].to_pylist(), strict=True
        ):
            yield from _guarded(number, self._tables(number, codes), self._schema)

    def _tables(self, number: int, codes: bytes) -> Iterator[pa.Table]:
        readings = self._job.reader(number).read(self._job.chunks[number])
        wanted = (
            (finished.place_of(number, at), code, reading)
            for at, (code, reading) in enumerate(zip(codes, readings, strict=True))
            if code and reading.value is not None
        )
        for held in _batches(wanted):
            yield self._table(*zip(*held, strict=True))

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
        return _table(columns, self._schema, len(found))


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


def _guarded(number: int, tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield a chunk's tables and an empty one, so that no chunk is without.

    Our own errors are carried as rows: through Ray they would arrive wrapped in tracebacks.
    """
    fatal: list[dict[str, Any]] = []
    try:
        yield from tables
    except DistftError as error:
        said = json.dumps([type(error).__name__, str(error), error.hint])
        fatal.append({"chunk": number, "fatal": said})
    yield pa.Table.from_pylist(fatal, schema=schema)


def _table(columns: dict[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    """Return columns as a table; those not given are null."""
    arrays = [
        _array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return a column; lists of numbers, which hold nearly all there is, by way of one array."""
    if not pa.types.is_list(kind) or not pa.types.is_primitive(kind.value_type):
        return pa.array(values, kind)
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    numbers = np.fromiter(chain.from_iterable(values), kind.value_type.to_pandas_dtype(), ends[-1])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(numbers), type=kind)
