"""Chunks -> canonical rows, and the little a split must know of each. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from distft import plugin
from distft.data.rows import read_chunk
from distft.data.source import Chunk
from distft.plugin import Row, UnusableRow

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


@dataclass(frozen=True)
class RowReader:
    """Reads chunks; holds names only, so that it travels between processes."""

    format: str
    columns: Mapping[str, str]
    training: bool = True
    """Rows without what is to be learnt (label, answer) are unusable."""

    def read(self, chunk: Chunk) -> Iterator[Reading]:
        """Yield every row of a chunk in file order.

        Args:
            chunk: A part of a file.

        Yields:
            One entry per row, usable or not.

        Raises:
            DataError: The file as a whole cannot be read.
        """
        form = plugin.formats()[self.format]
        for raw in read_chunk(chunk):
            if raw.value is None:
                yield Reading(raw.path, raw.row, None, raw.reason, raw.error)
                continue
            try:
                row = form.read(raw.value, self.columns)
                if self.training:
                    _check_target(row, self.columns[form.target])
            except UnusableRow as error:
                where = f"{raw.path}:{raw.row}: {error}"
                yield Reading(raw.path, raw.row, None, str(error), where, raw.value)
                continue
            yield Reading(raw.path, raw.row, row, raw=raw.value)


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
