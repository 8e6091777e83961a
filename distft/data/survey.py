"""Chunks -> canonical rows, and the little a split must know of each. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from distft import plugin
from distft.config_sections import CleanConfig
from distft.data import near
from distft.data.clean import Change, CleanedOut, clean_row
from distft.data.rows import read_chunk
from distft.data.source import Chunk
from distft.data.tally import packed
from distft.plugin import Row, Task, UnusableRow

_TARGETS = ("label", "labels", "value", "tags", "target")
"""Keys of canonical rows that hold what is to be learnt (see `distft.plugin.RowKind`)."""


class Reading(NamedTuple):
    """One row as a format reads it, or why it cannot be used."""

    path: str
    row: int
    value: Row | None = None
    reason: str = ""
    """Why it is unusable, in words that many rows share; empty for a good row."""
    error: str = ""
    """File, row and what exactly is wrong; empty for a good row."""
    raw: Mapping[str, Any] | None = None
    """The row's own fields, as far as it could be parsed."""
    changes: tuple[Change, ...] = ()
    """What cleaning did to it."""
    cleaned_out: bool = False
    """True: nothing is wrong with it, but cleaning leaves it out."""


@dataclass(frozen=True)
class RowReader:
    """Reads chunks; holds names only, so that it travels between processes."""

    format: str
    columns: Mapping[str, str]
    training: bool = True
    """Rows without what is to be learnt (label, answer) are unusable, and cleaning may leave rows
    out for their length or language."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """What is done to the texts."""

    def read(self, chunk: Chunk) -> Iterator[Reading]:
        """Yield every row of a chunk in file order.

        Args:
            chunk: A part of a file.

        Yields:
            One entry per row, usable or not.

        Raises:
            DataError: The file as a whole cannot be read.
        """
        form, cleans = plugin.formats()[self.format], self.clean != CleanConfig()
        for raw in read_chunk(chunk):
            if raw.value is None:
                yield Reading(raw.path, raw.row, None, raw.reason, raw.error)
                continue
            try:
                row = form.read(raw.value, self.columns)
                if self.training:
                    _check_target(row, self.columns[form.target])
                changes: tuple[Change, ...] = ()
                if cleans:
                    row, changes = clean_row(row, self.clean, filters=self.training)
            except CleanedOut as out:
                reason, changes = str(out), out.changes
                where = f"{raw.path}:{raw.row}: {reason}"
                yield Reading(raw.path, raw.row, None, reason, where, raw.value, changes, True)
            except UnusableRow as error:
                where = f"{raw.path}:{raw.row}: {error}"
                yield Reading(raw.path, raw.row, None, str(error), where, raw.value)
            else:
                yield Reading(raw.path, raw.row, row, raw=raw.value, changes=changes)

    def of_kept(self) -> RowReader:
        """Return a reader for rows that no filter has left out: it need not ask the filters."""
        off: dict[str, Any] = {"min_chars": None, "max_chars": None, "languages": []}
        return replace(self, clean=self.clean.model_copy(update=off))


def surveyed(reader: RowReader, task: Task, chunk: Chunk) -> Iterator[dict[str, Any]]:
    """Yield what a split must know of each row of a chunk.

    Args:
        reader: Reads and cleans them.
        task: Knows what stands for a row, and its classes.
        chunk: A part of a file.

    Yields:
        `row`; of a usable one `key`, `stratum`, `classes` and, where near-duplicates are looked
        for, `signature`; of another `reason`, and `error` where something is wrong with it;
        `changes` where cleaning did anything.
    """
    sampled: Counter[str] = Counter()
    for reading in reader.read(chunk):
        item: dict[str, Any] = {"row": reading.row, "changes": packed(reading.changes, sampled)}
        row = reading.value
        if row is None:
            item["reason"] = reading.reason
            item["error"] = None if reading.cleaned_out else reading.error
        else:
            item["key"] = key_of(task.key(row))
            item["stratum"] = task.stratum(row)
            item["classes"] = list(task.classes(row)) if task.classes else None
            if reader.clean.near_duplicates is not None:
                item["signature"] = near.signature(row)
        yield item


def _check_target(row: Row, column: str) -> None:
    for key in _TARGETS:
        if key in row and row[key] is None:
            raise UnusableRow(f"field {column!r} is missing or empty")
    messages = row.get("messages")
    if messages and not any(message["role"] == "assistant" for message in messages):
        raise UnusableRow(f"field {column!r} holds no answer (assistant turn) to learn")


def key_of(text: str) -> bytes:
    """Return 16 bytes that stand for a row's input.

    Args:
        text: What `Task.key` returned.

    Returns:
        Equal for equal texts; two different ones of a billion collide with probability 1e-21.
    """
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
