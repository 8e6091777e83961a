"""Where raw files lie, on this machine or behind an address, and how they are opened.

Addresses go to the file systems of pyarrow (s3, gs, hdfs), which come with it, others (hf) to
fsspec: `s3://bucket/rows/*.jsonl`, `hf://datasets/user/name/train.parquet`. Of a shell's wildcards
they know `*` and `**`; the others mean something else in an address.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from distft import assets
from distft.errors import DataError

KINDS = ("jsonl", "json", "csv", "tsv", "txt", "conll", "bio", "iob", "parquet", "arrow")
PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Suffix after that of a text kind -> pyarrow's name of the compression."""

_BINARY = ("parquet", "arrow")
_KINDS_SAID = (
    f"{', '.join(f'.{kind}' for kind in KINDS)}; "
    f"all but the last two also with {' or '.join(PACKED)}"
)
_BUFFER_BYTES = 1 << 20


def kind_of(path: str) -> str | None:
    """Return the kind of a file by its name, or None where it is of none.

    Args:
        path: A path or address.

    Returns:
        One of KINDS.
    """
    name = PurePosixPath(path.lower())
    packed = name.suffix in PACKED
    kind = (name.with_suffix("") if packed else name).suffix.removeprefix(".")
    return kind if kind in KINDS and not (packed and kind in _BINARY) else None


def is_packed(path: str) -> bool:
    """Return whether a file is compressed as a whole.

    Args:
        path: A path or address.

    Returns:
        True for the suffixes in PACKED.
    """
    return path.lower().endswith(tuple(PACKED))


def is_address(path: str) -> bool:
    """Return whether a file lies behind an address, not in this machine's folders.

    Args:
        path: A path or address.

    Returns:
        True for what names a protocol.
    """
    return "://" in path


def expand(spec: str | Sequence[str], key: str) -> list[str]:
    """Return the files a path, glob, address, `asset:NAME` or list of them stands for, in order.

    Args:
        spec: As the configuration holds it.
        key: Its key, such as `data.train`, for messages.

    Returns:
        Existing, non-empty files of a supported kind; a glob's and a folder's sorted by name. Of a
        folder that `datasets` saved, the files of its rows. A folder's .txt files count only where
        it holds no other kind: a README.txt is no data.

    Raises:
        DataError: Nothing there, an empty file, an unsupported kind, or a file named twice.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    if not specs:
        raise DataError(f"{key}: the list of files is empty.", "Name at least one file.")
    paths = [path for one in specs for path in _expand_one(one, key)]
    seen: set[str] = set()
    for path in paths:
        same = path if is_address(path) else str(Path(path).resolve())
        if same in seen:
            raise DataError(f"{key}: {path} is named twice.", "Name every file once.")
        seen.add(same)
        if kind_of(path) is None:
            raise DataError(f"{key}: {path} is of no supported kind.", f"Supported: {_KINDS_SAID}.")
        if info(path).size == 0:
            raise DataError(f"{key}: {path} is empty.", "Give a file with at least one row.")
    return paths


def unread(spec: str | Sequence[str]) -> list[str]:
    """Return what a folder holds that `expand` passes over: a file astray should be seen.

    Args:
        spec: As the configuration holds it; only folders of this machine are looked into.

    Returns:
        Paths, sorted; hidden files are not named.
    """
    passed_over: list[str] = []
    for one in [spec] if isinstance(spec, str) else spec:
        path = Path(one).expanduser()
        if is_address(one) or not path.is_dir() or _saved(path) is not None:
            continue
        read = set(_of_folder([str(p) for p in path.iterdir() if p.is_file()]))
        files = sorted(str(p) for p in path.iterdir() if p.name[0] != ".")
        passed_over += [file for file in files if file not in read]
    return passed_over


def info(path: str) -> fs.FileInfo:
    """Return size and time of change of a file.

    Args:
        path: A path or address.

    Returns:
        pyarrow's FileInfo.

    Raises:
        DataError: Nothing answers there, or it may not be read.
    """
    try:
        system, inner = system_of(path)
        return system.get_file_info(inner)
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise unreadable(path, error) from error


def open_file(path: str, *, unpack: bool = True) -> BinaryIO:
    """Return a file opened for reading.

    Args:
        path: A path or address.
        unpack: False: a compressed file as it lies there.

    Returns:
        A buffered stream; it seeks where the file is not packed.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        packed = unpack and is_packed(path)
        if not is_address(path) and not packed:
            return open(path, "rb", buffering=_BUFFER_BYTES)
        system, inner = system_of(path)
        file: pa.NativeFile = system.open_input_file(inner)
        if packed:
            file = pa.CompressedInputStream(file, PACKED[PurePosixPath(path.lower()).suffix])
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES))
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise unreadable(path, error) from error


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Have what goes wrong while a file is read name the file.

    Args:
        path: A path or address.

    Yields:
        Nothing.

    Raises:
        DataError: It cannot be read on, such as a compressed file that was cut short.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def system_of(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path and its name there.

    Args:
        path: A path or address.

    Returns:
        pyarrow's file system, and what it calls the file.

    Raises:
        ImportError: The library of an address's protocol is not installed.
        ValueError: There is no such protocol.
    """
    if not is_address(path):
        return fs.LocalFileSystem(), str(Path(path).expanduser())
    try:
        system, inner = fs.FileSystem.from_uri(quote(path, safe=":/*@?=&"))
    except pa.ArrowInvalid:
        import fsspec

        other, inner = fsspec.core.url_to_fs(path)
        system = fs.PyFileSystem(fs.FSSpecHandler(other))
    return system, inner


def said(error: Exception) -> str:
    """Return what a library says is wrong, on one line and without its full stop.

    Args:
        error: What it raised.

    Returns:
        Its text, of the operating system's errors without file and number.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(" .")


def unreadable(path: str, error: Exception, after_row: int = 0) -> DataError:
    """Return the error of a file that cannot be read, or not to its end.

    Args:
        path: A path or address.
        error: What was raised.
        after_row: Number of the last row that could be read.

    Returns:
        What to raise.
    """
    where = f"{path} cannot be read" + (f" on after row {after_row}" if after_row else "")
    if not is_address(path):
        hint = "Copy or write it again: it is cut short or damaged." if is_packed(path) else ""
        return DataError(f"{where}: {said(error)}.", hint)
    return DataError(
        f"{where}: {said(error)}.",
        "Check the address, and that this machine and its workers may read it: credentials come "
        "from where the protocol's own tools take them, such as AWS_ACCESS_KEY_ID.",
    )


def _expand_one(spec: str, key: str) -> list[str]:
    if is_address(spec):
        return _expand_address(spec, key)
    path = assets.resolve(spec, "data") if spec.startswith("asset:") else Path(spec).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        saved = _saved(path)
        if saved is not None:
            return _of_saved(path, saved, key)
        found = _of_folder([str(p) for p in path.iterdir() if p.is_file()])
    else:
        found = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        what = (
            f"holds no file of a supported kind ({_KINDS_SAID})"
            if path.is_dir()
            else "does not exist"
        )
        raise DataError(f"{key}: {spec} {what}.", _nearby(path))
    return found


def _expand_address(spec: str, key: str) -> list[str]:
    try:
        system, inner = system_of(spec)
        protocol = spec.partition("//")[0] + "//"
        prefix = spec.removesuffix(inner) if spec.endswith(inner) else protocol
        pattern = "*" in inner
        if not pattern and system.get_file_info(inner).is_file:
            return [spec]
        folder = inner.rstrip("/")
        if pattern:
            whole = takewhile(lambda part: "*" not in part, PurePosixPath(inner).parts)
            folder = str(PurePosixPath(*whole))
        chosen = fs.FileSelector(folder, allow_not_found=True, recursive=pattern)
        held = [one.path for one in system.get_file_info(chosen) if one.is_file]
    except (OSError, pa.ArrowException, ValueError, ImportError) as error:
        raise unreadable(f"{key}: {spec}", error) from error
    matching = (path for path in held if _matches(path.split("/"), inner.split("/")))
    found = sorted(matching) if pattern else _of_folder(held)
    if not found:
        raise DataError(
            f"{key}: {spec} names no file of a supported kind.", f"Supported: {_KINDS_SAID}."
        )
    return [prefix + path for path in found]


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Say whether the parts of a path fit a glob's: `*` within one, `**` any number of them."""
    if not pattern or not path:
        return not path and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return any(_matches(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _of_folder(paths: Sequence[str]) -> list[str]:
    held = sorted(path for path in paths if kind_of(path) is not None)
    return [path for path in held if kind_of(path) != "txt"] or held


def _saved(folder: Path) -> Path | None:
    """Return what tells that `datasets` saved a folder, one set or several."""
    for name in ("state.json", "dataset_dict.json"):
        if (folder / name).is_file():
            return folder / name
    return None


def _of_saved(folder: Path, saved: Path, key: str) -> list[str]:
    content = json.loads(saved.read_text(encoding="utf-8"))
    if saved.name == "dataset_dict.json":
        parts = content["splits"]
        raise DataError(
            f"{key}: {folder} holds {len(parts)} sets: {', '.join(parts)}.",
            f"Name one, such as {folder / parts[0]}.",
        )
    return [str(folder / file["filename"]) for file in content["_data_files"]]


def _nearby(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(p.name for p in folder.iterdir() if kind_of(p.name) is not None)
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {folder / close[0]}?"
    if names:
        return f"{folder.resolve()} holds {', '.join(names[:5])}{', ...' if names[5:] else ''}."
    return f"{folder.resolve()} exists and holds no file of a supported kind ({_KINDS_SAID})."
