"""Raw files -> chunks that can be read anywhere, in any order. Pure: no Ray, no tokenizer.

A chunk knows the number of its first row, so that every row can say where it stands.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from distft.data import files
from distft.errors import DataError

_BY_LINES = ("jsonl", "txt")
"""Kinds whose rows are single lines: such a file is read in many chunks."""
_BINARY = ("parquet", "arrow")
_HEAD_BYTES = 1024

_MIN_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 4 << 20
_CHUNKS_PER_FILE = 256


@dataclass(frozen=True)
class Chunk:
    """A part of a file that is read at once."""

    path: str
    kind: str
    """jsonl (one object a line), json (one array), txt (one text a line), conll, bio or iob (one
    word a line, a blank one after each sentence), csv, tsv, parquet or arrow (an IPC stream)."""
    start: int
    """First byte; of Parquet the row group."""
    end: int | None
    """Byte after the last; None: to the end of the file."""
    first_row: int
    """1-based number of the first row: its line, that of the header for csv and tsv."""
    size_bytes: int
    """About how much is read."""


@dataclass(frozen=True)
class SourceFile:
    """One file of raw rows."""

    path: str
    kind: str
    size_bytes: int
    sha256: str
    chunks: tuple[Chunk, ...]


def scan(paths: Sequence[str]) -> list[SourceFile]:
    """Return the files with their hash and chunks; reads every byte once.

    Args:
        paths: What `files.expand` returned.

    Returns:
        One entry per file, in order.

    Raises:
        DataError: A file cannot be opened, is UTF-16 or UTF-32, or a Parquet file cut short.
    """
    found = [(path, files.info(path)) for path in paths]
    return [_scan_file(path, info.size, info.mtime_ns) for path, info in found]


@lru_cache(maxsize=4096)
def _scan_file(path: str, size_bytes: int, _mtime_ns: int) -> SourceFile:
    """Scan an unchanged file once a process: detection, key and preparation all ask."""
    kind = files.kind_of(path)
    assert kind is not None
    if kind not in _BINARY:
        head = _head(path)
        if kind == "json" and not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            kind = "jsonl"
    sha256, chunks = _cut(path, kind, size_bytes)
    if kind == "parquet":
        chunks = _row_groups(path)
    elif kind not in _BY_LINES or files.is_packed(path):
        chunks = [Chunk(path, kind, 0, None, 1, size_bytes)]
    return SourceFile(path, kind, size_bytes, sha256, tuple(chunks))


def _head(path: str) -> bytes:
    """Return how a text begins, packed or not, if it is in an encoding whose lines can be found."""
    with files.open_file(path) as file, files.readable(path):
        head = file.read(_HEAD_BYTES)
    # Every second byte of a Latin text in UTF-16 is 0, which no mark need announce.
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if marked or head.count(0) > len(head) // 3:
        raise DataError(f"{path} is encoded as UTF-16 or UTF-32.", "Save it as UTF-8.")
    return head


def _cut(path: str, kind: str, size_bytes: int) -> tuple[str, list[Chunk]]:
    """Return a file's hash and its chunks of whole lines."""
    step = min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, size_bytes // _CHUNKS_PER_FILE))
    digest = hashlib.sha256()
    chunks: list[Chunk] = []
    start, row = 0, 1
    with files.open_file(path, unpack=False) as file, files.readable(path):
        while block := file.read(step):
            if kind in _BY_LINES:
                block += file.readline()
            digest.update(block)
            chunks.append(Chunk(path, kind, start, start + len(block), row, len(block)))
            start += len(block)
            row += block.count(b"\n")
    return digest.hexdigest(), chunks


def _row_groups(path: str) -> list[Chunk]:
    chunks: list[Chunk] = []
    row = 1
    with files.open_file(path) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} is no whole Parquet file: {files.said(error)}.",
                "Copy or write it again; what it holds stands at its end, which is missing.",
            ) from error
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            chunks.append(Chunk(path, "parquet", number, None, row, group.total_byte_size))
            row += group.num_rows
    return chunks


def content_hash(found: Sequence[SourceFile]) -> str:
    """Return one SHA-256 over the contents of files, whatever their names.

    Args:
        found: What `scan` returned.

    Returns:
        64 hexadecimal digits.
    """
    text = json.dumps([[file.kind, file.sha256] for file in found])
    return hashlib.sha256(text.encode()).hexdigest()
