"""Chunks -> raw rows, each with the file and row that every message names; one reader a kind.

All but a `.json` array are read as a stream: memory stays flat however large a file is.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distft.data import files
from distft.data.source import Chunk
from distft.errors import DataError

_TAGGED = ("conll", "bio", "iob")
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_LONGEST_FIELD = 128 << 20
"""Characters; a quote that is never closed would otherwise make one field of all that follows."""


class RawRow(NamedTuple):
    """One row as it stands in a file, or why it cannot be read."""

    path: str
    row: int
    """1-based: line number, of a sentence its first; of a JSON array, a Parquet or an Arrow file
    the number of the element."""
    value: dict[str, Any] | None = None
    reason: str = ""
    """Why there is no value, in words that many rows share."""
    detail: str = ""
    """What exactly is wrong with this row."""

    @property
    def error(self) -> str:
        """Where and why the row cannot be read; empty for a good row."""
        return f"{self.path}:{self.row}: {self.detail or self.reason}" if self.reason else ""


def read_chunk(chunk: Chunk) -> Iterator[RawRow]:
    """Yield the rows of a chunk in file order; blank lines are no rows.

    Args:
        chunk: A part of a file.

    Yields:
        One entry per row, also for a row that cannot be read.

    Raises:
        DataError: The structure of the whole file is broken: no JSON array, no usable CSV
            header, a CSV quote that is never closed, a compressed file cut short.
    """
    last = 0
    try:
        for raw in _read(chunk):
            last = raw.row
            yield raw
    except (OSError, pa.ArrowException) as error:
        raise files.unreadable(chunk.path, error, after_row=last) from error


def _read(chunk: Chunk) -> Iterator[RawRow]:
    if chunk.kind == "parquet":
        yield from _read_row_group(chunk)
        return
    with files.open_file(chunk.path) as file:
        if chunk.kind == "arrow":
            yield from _read_arrow(chunk, file)
        elif chunk.kind == "json":
            yield from _read_array(chunk, file.read().removeprefix(codecs.BOM_UTF8))
        elif chunk.kind in ("csv", "tsv"):
            yield from _read_csv(chunk, file)
        elif chunk.kind in _TAGGED:
            yield from _read_sentences(chunk, _lines(chunk, file))
        else:
            read_line = _parse_line if chunk.kind == "jsonl" else _text_line
            for row, line in _lines(chunk, file):
                if line.strip():
                    yield read_line(chunk.path, row, line)


def _lines(chunk: Chunk, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered lines of a chunk, cut at line feeds only.

    U+2028 and its like may stand inside a JSON string.
    """
    if chunk.start:
        file.seek(chunk.start)
    place = chunk.start
    for row, line in enumerate(file, start=chunk.first_row):
        if chunk.end is not None and place >= chunk.end:
            return
        first = not place
        place += len(line)
        yield row, (line.removeprefix(codecs.BOM_UTF8) if first else line).removesuffix(b"\n")


def _parse_line(path: str, row: int, line: bytes) -> RawRow:
    try:
        value = _line_from_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(path, row, error)
    except _NamedTwice as error:
        return _named_twice(path, row, error)
    except json.JSONDecodeError as error:
        return RawRow(path, row, None, "not valid JSON", _not_json(error))
    except (ValueError, RecursionError) as error:
        return RawRow(path, row, None, "not valid JSON", f"not valid JSON: {error}")
    # UTF-8 holds no half of a surrogate pair; only an escape can write one.
    return _checked(path, row, value, halves=b"\\ud" in line or b"\\uD" in line)


class _NamedTwice(Exception):  # noqa: N818 - a value until then
    """Stands for an object that holds a name twice, until it is known in which row."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _NamedTwice:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    names = [name for name, _ in pairs]
    return _NamedTwice(max(names, key=names.count))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = _object(pairs)
    if isinstance(value, _NamedTwice):
        raise value
    return value


_array_from_json = json.JSONDecoder(object_pairs_hook=_object).decode
_line_from_json = json.JSONDecoder(object_pairs_hook=_unique).decode


def _named_twice(path: str, row: int, error: _NamedTwice) -> RawRow:
    detail = f"an object names {str(error)!r} more than once"
    return RawRow(path, row, None, "an object names a field more than once", detail)


def _not_json(error: json.JSONDecodeError) -> str:
    return f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}"


def _refuse(value: object) -> None:
    assert isinstance(value, _NamedTwice)
    raise value


def _not_utf8(path: str, row: int, error: UnicodeDecodeError) -> RawRow:
    detail = f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
    return RawRow(path, row, None, "not UTF-8", detail)


def _text_line(path: str, row: int, line: bytes) -> RawRow:
    try:
        return RawRow(path, row, {"text": line.decode("utf-8").removesuffix("\r")})
    except UnicodeDecodeError as error:
        return _not_utf8(path, row, error)


def _read_sentences(chunk: Chunk, numbered: Iterator[tuple[int, bytes]]) -> Iterator[RawRow]:
    first = 0
    lines: list[bytes] = []
    for row, line in numbered:
        # Not str.strip: an ideographic space is a word of Chinese texts cut into characters.
        bare = line.strip(b" \t\r")
        if bare:
            first = first if lines else row
            lines.append(bare)
        elif lines:
            yield from _sentence(chunk.path, first, lines)
            lines = []
    if lines:
        yield from _sentence(chunk.path, first, lines)


def _sentence(path: str, row: int, lines: list[bytes]) -> Iterator[RawRow]:
    """Yield a sentence's row: first column word, last column tag; none for -DOCSTART- alone."""
    try:
        texts = [line.decode("utf-8") for line in lines]
    except UnicodeDecodeError:
        yield RawRow(path, row, None, "not UTF-8", "not UTF-8; save the file as UTF-8")
        return
    fields = [line.split("\t") if "\t" in line else re.split(" +", line) for line in texts]
    # "# id 7" above a sentence is a remark; "# NN B-NP O" is a word.
    while fields and (
        fields[0][0] == "-DOCSTART-"
        or (fields[0][0] == "#" and len(fields[0]) > 2 and not _TAG.fullmatch(fields[0][-1]))
    ):
        del fields[0]
    if not fields:
        return
    if len({len(line) for line in fields}) > 1:
        counts = sorted({len(line) for line in fields})
        detail = f"the sentence's lines have {' and '.join(map(str, counts))} columns"
        yield RawRow(path, row, None, "lines of one sentence differ in their columns", detail)
        return
    value: dict[str, Any] = {"tokens": [line[0] for line in fields]}
    if len(fields[0]) > 1:
        value["ner_tags"] = [line[-1] for line in fields]
    yield RawRow(path, row, value)


def _checked(path: str, row: int, value: object, *, halves: bool) -> RawRow:
    """Return a parsed row; `halves` says whether it may hold halves of surrogate pairs."""
    if halves:
        try:
            json.dumps(value, ensure_ascii=False, default=_refuse).encode("utf-8")
        except UnicodeEncodeError:
            return RawRow(path, row, None, "half of a surrogate pair (such as \\ud83d alone)")
        except _NamedTwice as error:
            return _named_twice(path, row, error)
    if not isinstance(value, dict):
        return RawRow(path, row, None, f"not a JSON object but {type(value).__name__}")
    return RawRow(path, row, value)


def _read_array(chunk: Chunk, data: bytes) -> Iterator[RawRow]:
    try:
        values = _array_from_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{chunk.path}:{line}: not UTF-8.", "Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{chunk.path}:{error.lineno}: {_not_json(error)}.",
            "Mend the array, or write one object a line (.jsonl): a broken line costs one row.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{chunk.path}: not valid JSON: {error}.") from error
    for row, value in enumerate(values, start=1):
        yield _checked(chunk.path, row, value, halves=True)


def _read_csv(chunk: Chunk, file: BinaryIO) -> Iterator[RawRow]:
    # surrogateescape lets one row that is not UTF-8 cost that row, not the file.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(text, delimiter="\t" if chunk.kind == "tsv" else ",", strict=True)
    header = _header(chunk, reader)
    while True:
        row = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            said = str(error)
            if "unexpected end of data" in said or "field limit" in said:
                raise DataError(
                    f"{chunk.path}:{row}: a quote that opens here is never closed, so nothing "
                    "after it can be read.",
                    'Close the quote, or double it inside a quoted field ("").',
                ) from error
            yield RawRow(chunk.path, row, None, f"not valid CSV: {error}")
            continue
        if fields:
            yield _csv_row(chunk.path, row, header, fields)


def _header(chunk: Chunk, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration) as error:
        raise DataError(f"{chunk.path}:1: no valid header line: {error}.") from error
    if len(set(header)) != len(header) or "" in header:
        raise DataError(
            f"{chunk.path}:1: the header must name every column once, got {header}.",
            "The first line names the columns, such as text,label.",
        )
    return header


def _csv_row(path: str, row: int, header: list[str], fields: list[str]) -> RawRow:
    if len(fields) != len(header):
        detail = f"{len(fields)} fields where the header names {len(header)} columns"
        return RawRow(path, row, None, "wrong number of fields", detail)
    try:
        "".join(fields).encode("utf-8")
    except UnicodeEncodeError:
        return RawRow(path, row, None, "not UTF-8", "not UTF-8; save the file as UTF-8")
    return RawRow(path, row, dict(zip(header, fields, strict=True)))


def _read_row_group(chunk: Chunk) -> Iterator[RawRow]:
    with files.open_file(chunk.path) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        names = parquet.schema_arrow.names
        _check_names(chunk.path, names)
        row, rows = chunk.first_row, parquet.metadata.row_group(chunk.start).num_rows
        try:
            for batch in parquet.iter_batches(row_groups=[chunk.start], use_threads=False):
                for value in batch.to_pylist():
                    yield RawRow(chunk.path, row, value)
                    row += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            detail = f"row group {chunk.start} cannot be read: {files.said(error)}"
            for lost in range(row, chunk.first_row + rows):
                yield RawRow(chunk.path, lost, None, "its row group cannot be read", detail)


def _read_arrow(chunk: Chunk, file: BinaryIO) -> Iterator[RawRow]:
    with pa.ipc.open_stream(file) as reader:
        _check_names(chunk.path, reader.schema.names)
        row = chunk.first_row
        for batch in reader:
            try:
                values = batch.to_pylist()
            except UnicodeDecodeError:
                for lost in range(row, row + batch.num_rows):
                    yield RawRow(chunk.path, lost, None, "a text of its batch is not UTF-8")
            else:
                yield from (RawRow(chunk.path, row + i, value) for i, value in enumerate(values))
            row += batch.num_rows


def _check_names(path: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} names more than one column {', '.join(twice)}.",
            "Write the file with every column once.",
        )
