"""From surveyed rows to decided ones: splits, repetitions, labels, and what is wrong. Pure.

What is known of a row is kept in a few numbers of fixed size: rows may be many more than fit into
memory as objects.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distft.config_sections import DataConfig
from distft.data import resolve
from distft.data.manifest import DroppedRow
from distft.data.near import NearRepeats, signature
from distft.data.split import (
    BEYOND,
    FATES,
    SPLITS,
    TRAIN,
    UNUSABLE,
    Candidates,
    Part,
    assign,
    code_of,
)
from distft.data.survey import Reading, key_of
from distft.data.tally import Tally
from distft.errors import DataError
from distft.plugin import Task

_LISTED_ROWS = 1000
_NO_KEY = bytes(16)


class _Names:
    """Numbers for names, in the order they come."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self.known.setdefault(name, len(self.known))

    def numbers(self, names: pa.ChunkedArray) -> np.ndarray:
        """Return the number of each of a column's names; -1 for null."""
        found = pc.dictionary_encode(names.combine_chunks())
        mine = np.array([self.number(name) for name in found.dictionary.to_pylist()] + [-1])
        numbers: np.ndarray = mine[found.indices.fill_null(len(mine) - 1).to_numpy()]
        return numbers


@dataclass
class _Chunk:
    path: str
    origin: Part
    first: int
    """Of the survey's rows, which one is the chunk's first."""


class Survey:
    """What is known of all rows, chunk after chunk, in file order.

    Args:
        near: Whether near-duplicates are looked for.
    """

    def __init__(self, near: bool = False) -> None:
        self.near = near
        self.chunks: list[_Chunk] = []
        self.cleaning = Tally()
        self.signatures = bytearray()
        """Of the usable rows."""
        self.fates = np.empty(0, np.uint8)
        """Filled in by `decide`: a position in FATES for each row."""
        self._names, self._reasons = _Names(), _Names()
        self._rows = array("q")
        self._keys = bytearray()
        self._strata = array("i")
        self._whys = array("i")
        """Number of the reason; -1 for a usable row."""
        self._classes = array("i")
        self._class_ends = array("q")

    def begin(self, path: str, origin: Part) -> None:
        """Say where the rows that follow stand.

        Args:
            path: Their file.
            origin: Which setting named it.
        """
        self.chunks.append(_Chunk(path, origin, len(self._rows)))

    def add(
        self,
        row: int,
        key: bytes | None = None,
        stratum: str | None = None,
        classes: Sequence[str] = (),
        reason: str | None = None,
    ) -> None:
        """Take the next row.

        Args:
            row: Its number in the file.
            key: Stands for its input, 16 bytes; None for an unusable row.
            stratum: The class a split keeps in proportion, where there is one.
            classes: Names of all its classes.
            reason: Why it is unusable; None for a usable one.
        """
        self._rows.append(row)
        self._keys += key or _NO_KEY
        self._strata.append(self._names.number(stratum or ""))
        self._whys.append(-1 if key is not None else self._reasons.number(reason or ""))
        self._classes.extend(map(self._names.number, classes))
        self._class_ends.append(len(self._classes))

    def read(self, reading: Reading, task: Task) -> bytes | None:
        """Take the next row as it was read.

        Args:
            reading: The row, or why it is unusable.
            task: Knows what stands for a row, and its classes.

        Returns:
            Its key; None for an unusable row.
        """
        if reading.value is None:
            self.add(reading.row, reason=reading.reason)
            return None
        key = key_of(task.key(reading.value))
        classes = task.classes(reading.value) if task.classes else ()
        self.signatures += signature(reading.value) if self.near else b""
        self.add(reading.row, key, task.stratum(reading.value), classes)
        return key

    def extend(self, table: pa.Table) -> None:
        """Take the next rows as another process read them.

        Args:
            table: Columns `row`, `key`, `stratum`, `classes` and `reason`, as `add` has them,
                `signature` and `changes`, as `surveyed` has them.
        """
        self.signatures += b"".join(table["signature"].drop_null().to_pylist())
        self.cleaning.extend(self.chunks[-1].path, table)
        usable = pc.is_valid(table["key"]).to_numpy()
        self._rows.frombytes(table["row"].to_numpy().astype(np.int64).tobytes())
        self._keys += b"".join(key or _NO_KEY for key in table["key"].to_pylist())
        strata = self._names.numbers(pc.fill_null(table["stratum"], ""))
        self._strata.frombytes(strata.astype(np.int32).tobytes())
        reasons = self._reasons.numbers(table["reason"])
        self._whys.frombytes(np.where(usable, -1, reasons).astype(np.int32).tobytes())
        held = pc.fill_null(pc.list_value_length(table["classes"]), 0).to_numpy()
        ends = len(self._classes) + np.cumsum(held, dtype=np.int64)
        self._class_ends.frombytes(ends.tobytes())
        if len(ends) and ends[-1] > len(self._classes):
            classes = self._names.numbers(pc.list_flatten(table["classes"]))
            self._classes.frombytes(classes.astype(np.int32).tobytes())

    def __len__(self) -> int:
        return len(self._rows)

    def codes(self) -> list[bytes]:
        """Return, chunk by chunk, a byte per row: 0 for none, else the code of what it goes to."""
        kept = np.where(self.fates <= len(SPLITS), self.fates, UNUSABLE).astype(np.uint8)
        origins = self.origins()
        mixed = origins > len(SPLITS)
        kept[mixed] = np.where(kept[mixed] == TRAIN, origins[mixed], UNUSABLE)
        return [kept[rows].tobytes() for _, rows in self.by_chunk()]

    def by_chunk(self) -> Iterator[tuple[_Chunk, slice]]:
        """Yield each chunk and which rows are its own."""
        ends = [chunk.first for chunk in self.chunks[1:]] + [len(self)]
        for chunk, end in zip(self.chunks, ends, strict=True):
            yield chunk, slice(chunk.first, end)

    def place(self, index: int) -> tuple[str, int]:
        """Return file and row number of a row.

        Args:
            index: Which row of the survey.

        Returns:
            (path, row).
        """
        # Of chunks without a row, which begin at the same place, the last holds it.
        chunk = bisect_right(self.chunks, index, key=lambda chunk: chunk.first) - 1
        return self.chunks[chunk].path, self._rows[index]

    def candidates(self) -> tuple[np.ndarray, Candidates]:
        """Return which rows are usable, by index, and what a split needs of them."""
        usable = np.flatnonzero(np.frombuffer(self._whys, np.int32) < 0)
        keys = np.frombuffer(self._keys, ">u8").reshape(-1, 2)[usable].astype(np.uint64)
        strata = np.frombuffer(self._strata, np.int32)[usable]
        return usable, Candidates(keys, strata, list(self._names.known), self.origins()[usable])

    def origins(self) -> np.ndarray:
        """Return for each row the code of what named its file; uint8."""
        origins = np.empty(len(self), np.uint8)
        for chunk, rows in self.by_chunk():
            origins[rows] = code_of(chunk.origin)
        return origins

    def why(self, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return why rows are in no split.

        Args:
            rows: Indices.

        Returns:
            The number of each row's reason, and what the numbers stand for.
        """
        whys = np.frombuffer(self._whys, np.int32)[rows]
        numbers = np.where(whys < 0, self.fates[rows], len(FATES) + whys)
        return numbers, [*FATES, *self._reasons.known]

    def held(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return the classes of all rows.

        Returns:
            (index of the row, number of the class) of each, in order, and the classes' names.
        """
        ends = np.frombuffer(self._class_ends, np.int64)
        rows = np.repeat(np.arange(len(self)), np.diff(ends, prepend=0))
        return rows, np.frombuffer(self._classes, np.int32), list(self._names.known)


@dataclass
class Dropped:
    """Rows in no split: all counted, the first 1,000 listed."""

    counts: Counter[str] = field(default_factory=Counter)
    rows: list[DroppedRow] = field(default_factory=list)

    def add(self, path: str, row: int, reason: str) -> None:
        """Count a row.

        Args:
            path: Its file.
            row: Its number in the file.
            reason: Why it is in no split.
        """
        self.counts[reason] += 1
        if len(self.rows) < _LISTED_ROWS:
            self.rows.append(DroppedRow(file=path, row=row, reason=reason))

    def take(self, survey: Survey, rows: np.ndarray) -> None:
        """Count rows of a survey.

        Args:
            survey: Decided.
            rows: Which are in no split, by index.
        """
        numbers, names = survey.why(rows)
        for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            self.counts[names[number]] += int(count)
        room = max(0, _LISTED_ROWS - len(self.rows))
        # Rows beyond max_samples would crowd out all others.
        listed = np.flatnonzero(numbers != BEYOND)[:room]
        for row, number in zip(rows[listed].tolist(), numbers[listed], strict=True):
            path, place = survey.place(row)
            self.rows.append(DroppedRow(file=path, row=place, reason=names[number]))

    def summary(self) -> str:
        """Return the commonest reason and its first listed row as a sentence, or nothing."""
        if not self.counts:
            return ""
        reason, count = self.counts.most_common(1)[0]
        first = next((row for row in self.rows if row.reason == reason), None)
        where = f", first at {first.file}:{first.row}" if first else ""
        return f"{sum(self.counts.values())} rows were dropped; {count} of them: {reason}{where}."


def decide(survey: Survey, data: DataConfig, seed: int, dropped: Dropped) -> None:
    """Set the fate of every surveyed row and count the dropped ones.

    Args:
        survey: Every chunk, in file order; its `fates` are filled in.
        data: The data settings.
        seed: Decides which rows a share takes.
        dropped: Takes the rows that are in no split.

    Raises:
        DataError: There is no row at all, no usable one, or none left for a split.
    """
    usable, candidates = survey.candidates()
    survey.fates = np.full(len(survey), UNUSABLE, np.uint8)
    near = NearRepeats(survey.signatures, data.clean.near_duplicates)
    survey.fates[usable] = assign(candidates, resolve.shares(data), seed, near.mark)
    for row, like in near.likes.items():
        survey.cleaning.near(survey.place(int(usable[row])), survey.place(int(usable[like])))
    origins = survey.origins()
    mine = origins == TRAIN
    _train_every_class(survey, mine)
    if data.max_samples is not None:
        trained = np.flatnonzero(mine & (survey.fates == TRAIN))
        survey.fates[trained[data.max_samples :]] = BEYOND
    out = np.flatnonzero((survey.fates == UNUSABLE) | (survey.fates > len(SPLITS)))
    dropped.take(survey, out)
    for part in dict.fromkeys([*SPLITS, *(chunk.origin for chunk in survey.chunks)]):
        _check_any(part, survey)
    counts = np.bincount(survey.fates[origins <= len(SPLITS)], minlength=len(FATES))
    check_not_empty(dict(zip(SPLITS, counts.tolist()[TRAIN:], strict=False)), dropped)


def _train_every_class(survey: Survey, mine: np.ndarray) -> None:
    """Put rows of `mine` drawn for eval or test back where `mine` lack a class of theirs.

    A stratum is one class of a row; a row of several may hold another that is nowhere else.
    """
    rows, classes, names = survey.held()
    if not len(classes):
        return
    trained = np.zeros(len(names), bool)
    trained[classes[(mine & (survey.fates == TRAIN))[rows]]] = True
    drawn = mine & (survey.fates > TRAIN) & (survey.fates <= len(SPLITS))
    lacking = drawn[rows] & ~trained[classes]
    for row in np.unique(rows[lacking]):
        mine = classes[slice(*np.searchsorted(rows, (row, row + 1)))]
        if not trained[mine].all():
            survey.fates[row] = TRAIN
            trained[mine] = True


def check_not_empty(rows: Mapping[str, int], dropped: Dropped) -> None:
    """Refuse splits without rows.

    Args:
        rows: Rows of each split.
        dropped: Rows in no split, for the message.

    Raises:
        DataError: A split is empty.
    """
    for split, count in rows.items():
        if not count:
            raise DataError(
                f"No row is left for {split}. {dropped.summary()}".strip(),
                "Give more rows, or set data.eval and data.test to files or larger shares.",
            )


def _check_any(part: Part, survey: Survey) -> None:
    """Refuse a setting whose files hold no usable row, a mixed set none to train on."""
    mine = [(chunk, rows) for chunk, rows in survey.by_chunk() if chunk.origin == part]
    good = range(TRAIN, len(FATES)) if part in SPLITS else [TRAIN]
    if not mine or any(np.isin(survey.fates[rows], good).any() for _, rows in mine):
        return
    paths = ", ".join(dict.fromkeys(chunk.path for chunk, _ in mine))
    refused = Dropped()
    refused.take(survey, np.concatenate([np.arange(len(survey))[rows] for _, rows in mine]))
    raise DataError(
        f"data.{part if part in SPLITS else 'mix'}: {paths} holds no "
        f"{'usable ' if refused.counts else ''}row. {refused.summary()}".strip(),
        "`distft formats` shows what each format reads; data.columns renames columns.",
    )
