"""What an interrupted preparation has finished: its shards, and where in the files they end."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distft.data.manifest import SplitInfo, file_sha256
from distft.data.split import Part, code_of
from distft.records import write_text

FINISHED_FILE = "finished.json"

_AT_BITS = 32


class Refused(BaseModel):
    """A row that the task could not encode."""

    model_config = ConfigDict(extra="forbid")

    split: Part
    place: int
    """See `place_of`."""
    row: int
    """Its number in the file."""
    reason: str
    untrained: bool
    """It could be read, and nothing of it would be trained."""


class Finished(BaseModel):
    """Kept beside the shards until the manifest stands."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    splits: dict[Part, SplitInfo] = Field(default_factory=dict)
    """What the finished shards hold."""
    places: dict[Part, int] = Field(default_factory=dict)
    """Split -> where its last row in a finished shard stands."""
    refused: list[Refused] = Field(default_factory=list)
    """Rows that went to no shard, as far as they stand before `places`."""
    tokenized_rows: int = 0
    """Over all attempts so far."""

    def of(self, split: Part) -> tuple[SplitInfo, int] | None:
        """Return what a split's finished shards hold and the place of their last row.

        Args:
            split: train, eval, test or a mixed set.

        Returns:
            None where no shard of it is finished.
        """
        info = self.splits.get(split)
        return None if info is None else (info, self.places[split])

    def left(self, wanted: Sequence[bytes]) -> list[bytes]:
        """Return which rows are still to be tokenized.

        Args:
            wanted: Chunk by chunk a byte per row: 0 for none, else the code of its split.

        Returns:
            The same with 0 for the rows that finished shards hold or that were refused.
        """
        codes = [np.frombuffer(one, np.uint8).copy() for one in wanted]
        for split, place in self.places.items():
            chunk, at = chunk_of(place), place & (1 << _AT_BITS) - 1
            code = code_of(split)
            for number, mine in enumerate(codes[: chunk + 1]):
                done = mine[: at + 1] if number == chunk else mine
                done[done == code] = 0
        return [mine.tobytes() for mine in codes]


def place_of(chunk: int, at: int) -> int:
    """Return a number that grows from row to row.

    Args:
        chunk: Number of the chunk among those of a preparation.
        at: Which row of the chunk, from 0.

    Returns:
        The place of the row.
    """
    return chunk << _AT_BITS | at


def chunk_of(place: int) -> int:
    """Return the number of a place's chunk.

    Args:
        place: Of a row.

    Returns:
        Its first argument to `place_of`.
    """
    return place >> _AT_BITS


def save(
    root: Path,
    infos: Mapping[Part, tuple[SplitInfo, int]],
    refused: Iterable[Refused],
    tokenized_rows: int,
) -> None:
    """Write what is finished.

    Args:
        root: Folder of the shards.
        infos: Split -> what its finished shards hold, and the place of the last row in them.
        refused: All rows refused so far.
        tokenized_rows: Over all attempts.
    """
    places = {split: place for split, (info, place) in infos.items() if info.shards}
    finished = Finished(
        splits={split: info for split, (info, _) in infos.items() if info.shards},
        places=places,
        refused=[one for one in refused if one.place <= places.get(one.split, -1)],
        tokenized_rows=tokenized_rows,
    )
    write_text(root / FINISHED_FILE, finished.model_dump_json() + "\n")


def take_up(root: Path) -> Finished:
    """Return what an earlier attempt has finished, and clear away the rest of it.

    Args:
        root: Folder of the shards; made where it does not exist.

    Returns:
        What is whole, compared with what was written; nothing where anything differs.
    """
    try:
        finished = Finished.model_validate_json((root / FINISHED_FILE).read_bytes())
        shards = [shard for info in finished.splits.values() for shard in info.shards]
        whole = all(file_sha256(root / shard.file) == shard.sha256 for shard in shards)
    except (OSError, ValidationError):
        whole, shards, finished = True, [], Finished()
    if not whole:
        shards, finished = [], Finished()
    if not shards:
        shutil.rmtree(root, ignore_errors=True)
    root.mkdir(exist_ok=True)
    # The file itself stays: this attempt may be interrupted before it finishes another shard.
    kept = {FINISHED_FILE, *(shard.file for shard in shards)}
    for path in root.iterdir():
        if path.name not in kept:
            path.unlink()
    return finished
