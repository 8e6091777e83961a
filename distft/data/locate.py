"""A row named as messages name it, FILE:ROW -> the row, and what became of it."""

from __future__ import annotations

from pathlib import Path

from distft.config import RunConfig
from distft.data import resolve
from distft.data.source import Chunk
from distft.data.split import FATES
from distft.data.stats import Surveyed
from distft.data.survey import Reading
from distft.errors import ConfigError, DataError


def place(text: str, config: RunConfig) -> tuple[str, int]:
    """Return where a named row stands.

    Args:
        text: Such as data.jsonl:12.
        config: The configuration that reads the file.

    Returns:
        The file as messages have it, and the number of the row.

    Raises:
        ConfigError: It is no such name, or the configuration reads no such file.
    """
    named, _, row = text.rpartition(":")
    if not named or not row.isdecimal():
        raise ConfigError(
            f"--row: got {text!r}; allowed: FILE:ROW.",
            "Name the row as messages do, such as train.jsonl:12.",
        )
    paths = [file.path for scanned in resolve.sources(config.data).values() for file in scanned]
    wanted = {named, str(Path(named).expanduser().absolute())}
    for path in paths:
        if path in wanted:
            return path, int(row)
    raise ConfigError(
        f"--row: {named} is no file of this config; it reads {', '.join(paths[:5])}"
        f"{' ...' if len(paths) > 5 else ''}."
    )


def find(found: Surveyed, config: RunConfig, path: str, row: int) -> tuple[Reading, str]:
    """Return a row of the files.

    Args:
        found: What is known of the rows.
        config: Of the same files.
        path: Whose row.
        row: Its number, as messages have it.

    Returns:
        The row, and its fate (see `distft.data.split.FATES`); empty beyond what was surveyed.

    Raises:
        DataError: The file holds no such row.
    """
    chunks = [
        (part, chunk)
        for part, scanned in resolve.sources(config.data).items()
        for file in scanned
        for chunk in file.chunks
        if chunk.path == path and chunk.first_row <= row
    ]
    for part, chunk in chunks[-1:]:
        for place, reading in enumerate(found.readers[part].read(chunk)):
            if reading.row == row:
                return reading, _fate(found, chunk, place)
    raise DataError(
        f"{path} holds no row {row}.",
        "Rows are numbered by their first line, as messages name them; blank lines are none.",
    )


def _fate(found: Surveyed, chunk: Chunk, place: int) -> str:
    if chunk not in found.chunks:
        return ""
    _, mine = list(found.survey.by_chunk())[found.chunks.index(chunk)]
    fate: int = found.survey.fates[mine.start + place]
    return FATES[fate]
