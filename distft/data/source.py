"""Raw files -> rows, with the file and row every message names. Pure: no Ray, no tokenizer.

Files are cut into chunks of whole lines that know the number of their first row, so that chunks
can be read anywhere and in any order and still say where a row stands.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distft import assets
from distft.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".conll", ".bio", ".iob")

_TAGGED = ("conll", "bio", "iob")
_BY_LINES = ("jsonl", "txt")
"""Kinds whose rows are single lines: such a file is read in many chunks, any other as one."""
_TAG = re.compile(r"O|[BIESLUM]-\S+")

_MIN_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 16 << 20
_CHUNKS_PER_FILE = 256


@dataclass(frozen=True)
class Chunk:
    """A part of a file that is read at once."""

    path: str
    kind: str
    """jsonl (one object a line), json (one array), txt (one text a line), conll, bio or iob (one
    word a line, a blank one after each sentence), csv or tsv."""
    start: int
    """First byte."""
    end: int
    """Byte after the last."""
    first_row: int
    """1-based line number of the first row; of the header's line for csv and tsv."""


@dataclass(frozen=True)
class SourceFile:
    """One file of raw rows."""

    path: str
    kind: str
    size_bytes: int
    sha256: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in a file, or why it cannot be read."""

    path: str
    row: int
    """1-based: line number, of a sentence its first; for a JSON array the number of the element."""
    value: dict[str, Any] | None = None
    reason: str = ""
    """Why there is no value, in words that many rows share."""
    detail: str = ""
    """What exactly is wrong with this row."""

    @property
    def error(self) -> str:
        """Where and why the row cannot be read; empty for a good row."""
        return f"{self.path}:{self.row}: {self.detail or self.reason}" if self.reason else ""


def expand(spec: str | Sequence[str], key: str) -> list[Path]:
    """Return the files a path, glob, `asset:NAME` or list of them stands for, in order.

    Args:
        spec: As the configuration holds it.
        key: Its key, such as `data.train`, for messages.

    Returns:
        Existing, non-empty files with a supported suffix; a glob's and a folder's sorted by name.
        A folder's .txt files count only where it holds no other kind: a README.txt is no data.

    Raises:
        DataError: Nothing there, an empty file, an unsupported suffix, or a file named twice.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    if not specs:
        raise DataError(f"{key}: the list of files is empty.", "Name at least one file.")
    paths = [path for one in specs for path in _expand_one(one, key)]
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{key}: {path} is named twice.", "Name every file once.")
        seen.add(path.resolve())
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{key}: {path} is of no supported kind.", f"Supported: {', '.join(SUFFIXES)}."
            )
        if path.stat().st_size == 0:
            raise DataError(f"{key}: {path} is empty.", "Give a file with at least one row.")
    return paths


def _expand_one(spec: str, key: str) -> list[Path]:
    path = assets.resolve(spec, "data") if spec.startswith("asset:") else Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        held = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
        found = [p for p in held if p.suffix.lower() != ".txt"] or held
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        what = f"holds no {', '.join(SUFFIXES)} file" if path.is_dir() else "does not exist"
        raise DataError(f"{key}: {spec} {what}.", _nearby(path))
    return found


def _nearby(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {folder / close[0]}?"
    if names:
        return f"{folder.resolve()} holds {', '.join(names[:5])}{', ...' if names[5:] else ''}."
    return f"{folder.resolve()} exists and holds no {', '.join(SUFFIXES)} file."


def scan(paths: Sequence[Path]) -> list[SourceFile]:
    """Return the files with their hash and chunks; reads every byte once.

    Args:
        paths: What `expand` returned.

    Returns:
        One entry per file, in order.

    Raises:
        DataError: A file is not UTF-8 at its first bytes, or cannot be opened.
    """
    try:
        stats = [path.stat() for path in paths]
        return [
            _scan_file(path, stat.st_size, stat.st_mtime_ns)
            for path, stat in zip(paths, stats, strict=True)
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=4096)
def _scan_file(path: Path, size_bytes: int, _mtime_ns: int) -> SourceFile:
    """Scan an unchanged file once a process: detection, key and preparation all ask."""
    kind = path.suffix.lower().removeprefix(".")
    digest = hashlib.sha256()
    chunks: list[Chunk] = []
    step = min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, size_bytes // _CHUNKS_PER_FILE))
    with path.open("rb") as file:
        head = file.read(1024)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{path} is encoded as UTF-16.", "Save it as UTF-8.")
        if kind == "json" and not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            kind = "jsonl"
        file.seek(0)
        start, row = 0, 1
        while block := file.read(step):
            block += file.readline()
            digest.update(block)
            chunks.append(Chunk(str(path), kind, start, start + len(block), row))
            start += len(block)
            row += block.count(b"\n")
    if kind not in _BY_LINES:
        chunks = [Chunk(str(path), kind, 0, start, 1)]
    return SourceFile(str(path), kind, start, digest.hexdigest(), tuple(chunks))


def content_hash(files: Sequence[SourceFile]) -> str:
    """Return one SHA-256 over the contents of files, whatever their names.

    Args:
        files: What `scan` returned.

    Returns:
        64 hexadecimal digits.
    """
    text = json.dumps([[file.kind, file.sha256] for file in files])
    return hashlib.sha256(text.encode()).hexdigest()


def read_chunk(chunk: Chunk) -> Iterator[RawRow]:
    """Yield the rows of a chunk in file order; blank lines are no rows.

    Args:
        chunk: A part of a file.

    Yields:
        One entry per row, also for a row that cannot be read.

    Raises:
        DataError: The structure of the whole file is broken: no JSON array, no usable CSV
            header, or a CSV quote that is never closed.
    """
    with open(chunk.path, "rb") as file:
        file.seek(chunk.start)
        data = file.read(chunk.end - chunk.start)
    if chunk.start == 0:
        data = data.removeprefix(codecs.BOM_UTF8)
    if chunk.kind == "jsonl":
        yield from _read_lines(chunk, data)
    elif chunk.kind == "json":
        yield from _read_array(chunk, data)
    elif chunk.kind == "txt":
        yield from _read_text(chunk, data)
    elif chunk.kind in _TAGGED:
        yield from _read_sentences(chunk, data)
    else:
        yield from _read_csv(chunk, data)


def _read_lines(chunk: Chunk, data: bytes) -> Iterator[RawRow]:
    # bytes.split, not str.splitlines: U+2028 and its like may stand inside a JSON string.
    for row, line in enumerate(data.split(b"\n"), start=chunk.first_row):
        if line.strip():
            yield _parse_line(chunk.path, row, line)


def _parse_line(path: str, row: int, line: bytes) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(path, row, error)
    except json.JSONDecodeError as error:
        detail = f"not valid JSON: {error.msg} at column {error.colno}"
        return RawRow(path, row, None, "not valid JSON", detail)
    except (ValueError, RecursionError) as error:
        return RawRow(path, row, None, "not valid JSON", f"not valid JSON: {error}")
    return _checked(path, row, value)


def _not_utf8(path: str, row: int, error: UnicodeDecodeError) -> RawRow:
    detail = f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
    return RawRow(path, row, None, "not UTF-8", detail)


def _read_text(chunk: Chunk, data: bytes) -> Iterator[RawRow]:
    for row, line in enumerate(data.split(b"\n"), start=chunk.first_row):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            yield _not_utf8(chunk.path, row, error)
            continue
        if text.strip():
            yield RawRow(chunk.path, row, {"text": text})


def _read_sentences(chunk: Chunk, data: bytes) -> Iterator[RawRow]:
    first = 0
    lines: list[bytes] = []
    # Not str.strip: an ideographic space is a word of Chinese texts cut into characters.
    stripped = (line.strip(b" \t\r") for line in [*data.split(b"\n"), b""])
    for row, line in enumerate(stripped, start=chunk.first_row):
        if line:
            first = first if lines else row
            lines.append(line)
        elif lines:
            yield from _sentence(chunk.path, first, lines)
            lines = []


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


def _checked(path: str, row: int, value: object) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(path, row, None, f"not a JSON object but {type(value).__name__}")
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return RawRow(path, row, None, "half of a surrogate pair (such as \\ud83d alone)")
    return RawRow(path, row, value)


def _read_array(chunk: Chunk, data: bytes) -> Iterator[RawRow]:
    try:
        values = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{chunk.path}:{line}: not UTF-8.", "Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{chunk.path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}.",
            "Mend the array, or write one object a line (.jsonl): a broken line costs one row.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{chunk.path}: not valid JSON: {error}.") from error
    for row, value in enumerate(values, start=1):
        yield _checked(chunk.path, row, value)


def _read_csv(chunk: Chunk, data: bytes) -> Iterator[RawRow]:
    # surrogateescape lets one row that is not UTF-8 cost that row, not the file.
    text = io.StringIO(data.decode("utf-8", errors="surrogateescape"), newline="")
    csv.field_size_limit(max(csv.field_size_limit(), len(data) + 1))
    reader = csv.reader(text, delimiter="\t" if chunk.kind == "tsv" else ",", strict=True)
    header = _header(chunk, reader)
    while True:
        row = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
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
