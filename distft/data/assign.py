"""From surveyed rows to decided ones: splits, repetitions, labels, and what is wrong. Pure."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distft.config_sections import DataConfig
from distft.data import resolve
from distft.data.manifest import DroppedRow
from distft.data.split import SPLITS, Candidate, Fate, Split, assign
from distft.data.survey import Reading, key_of
from distft.errors import DataError
from distft.plugin import Task

_LISTED_ROWS = 1000
_UNLISTED = "beyond_max_samples"
"""A reason that would crowd out all others in the list; it is counted only."""


@dataclass
class Survey:
    """What is known of the rows of one chunk, in order."""

    path: str
    origin: Split
    """Which setting named the file."""
    rows: list[int] = field(default_factory=list)
    """Row numbers."""
    candidates: list[Candidate | None] = field(default_factory=list)
    """None where a row is unusable."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Index -> why the row is unusable."""
    classes: list[tuple[str, ...]] = field(default_factory=list)
    """Names of the classes in each row."""
    fates: list[str | None] = field(default_factory=list)
    """The split of each row, or why a usable one is in none."""

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
            key: Stands for its input; None for an unusable row.
            stratum: The class a split keeps in proportion, where there is one.
            classes: Names of all its classes.
            reason: Why it is unusable; None for a usable one.
        """
        self.rows.append(row)
        if reason:
            self.reasons[len(self.candidates)] = reason
        self.candidates.append(None if key is None else Candidate(key, stratum, self.origin))
        self.classes.append(tuple(map(sys.intern, classes)))

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
        self.add(reading.row, key, task.stratum(reading.value), classes)
        return key

    def codes(self) -> bytes:
        """Return one byte per row: 0 for none, else 1 + the position of its split in SPLITS."""
        codes: dict[str | None, int] = dict(zip(SPLITS, (1, 2, 3), strict=True))
        return bytes(codes.get(fate, 0) for fate in self.fates)


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
        if reason != _UNLISTED and len(self.rows) < _LISTED_ROWS:
            self.rows.append(DroppedRow(file=path, row=row, reason=reason))

    def summary(self) -> str:
        """Return the commonest reason and its first listed row as a sentence, or nothing."""
        if not self.counts:
            return ""
        reason, count = self.counts.most_common(1)[0]
        first = next((row for row in self.rows if row.reason == reason), None)
        where = f", first at {first.file}:{first.row}" if first else ""
        return f"{sum(self.counts.values())} rows were dropped; {count} of them: {reason}{where}."


def decide(surveys: Sequence[Survey], data: DataConfig, seed: int, dropped: Dropped) -> None:
    """Set the fate of every surveyed row and count the dropped ones.

    Args:
        surveys: Every chunk, in file order; their `fates` are filled in.
        data: The data settings.
        seed: Decides which rows a share takes.
        dropped: Takes the rows that are in no split.

    Raises:
        DataError: There is no row at all, no usable one, or none left for a split.
    """
    usable = [row for survey in surveys for row in survey.candidates if row is not None]
    classes = [
        names
        for survey in surveys
        for row, names in zip(survey.candidates, survey.classes, strict=True)
        if row is not None
    ]
    drawn = assign(usable, resolve.shares(data), seed)
    fates = iter(_with_every_class_trained(drawn, usable, classes))
    room = data.max_samples
    for survey in surveys:
        for i, candidate in enumerate(survey.candidates):
            fate: str | None = None if candidate is None else next(fates)
            if fate == "train" and room is not None:
                room -= 1
                if room < 0:
                    fate = _UNLISTED
            survey.fates.append(fate)
            reason = survey.reasons.get(i) if fate is None else fate
            if reason is not None and fate not in SPLITS:
                dropped.add(survey.path, survey.rows[i], reason)
    for split in SPLITS:
        _check_any(split, [survey for survey in surveys if survey.origin == split])
    rows = Counter(fate for survey in surveys for fate in survey.fates)
    check_not_empty({split: rows[split] for split in SPLITS}, dropped)


def _with_every_class_trained(
    fates: Sequence[Fate], rows: Sequence[Candidate], classes: Sequence[Sequence[str]]
) -> list[Fate]:
    """Return the fates with rows drawn for eval or test put back where training lacks a class.

    A stratum is one class of a row; a row of several may hold another that is nowhere else.
    """
    result = list(fates)
    pairs = zip(fates, classes, strict=True)
    seen = {name for fate, names in pairs if fate == "train" for name in names}
    for i, (fate, row, names) in enumerate(zip(fates, rows, classes, strict=True)):
        drawn = row.origin == "train" and fate in SPLITS[1:]
        if drawn and not seen.issuperset(names):
            result[i] = "train"
            seen.update(names)
    return result


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


def _check_any(split: Split, surveys: Sequence[Survey]) -> None:
    """Refuse a setting whose files hold no usable row."""
    if not surveys or any(row is not None for survey in surveys for row in survey.candidates):
        return
    paths = ", ".join(dict.fromkeys(survey.path for survey in surveys))
    refused = Dropped()
    for survey in surveys:
        for i, reason in survey.reasons.items():
            refused.add(survey.path, survey.rows[i], reason)
    raise DataError(
        f"data.{split}: {paths} holds no {'usable ' if refused.counts else ''}row. "
        f"{refused.summary()}".strip(),
        "`distft formats` shows what each format reads; data.columns renames columns.",
    )


def labels_of(
    surveys: Sequence[Survey], task: Task, data: DataConfig, *, complete: bool = True
) -> list[str]:
    """Return the class names in id order: whole numbers by value, others by name.

    Args:
        surveys: Decided rows.
        task: The task.
        data: The data settings, for the message.
        complete: Whether every row was surveyed; if not, classes of eval and test count as seen.

    Returns:
        Classes of the training rows; empty for a task without classes.

    Raises:
        DataError: Fewer than two classes, or one in eval or test that training never sees.
    """
    if task.classes is None:
        return []
    seen = {name for split, _, _, name in _labelled(surveys) if split == "train" or not complete}
    for split, path, row, name in _labelled(surveys):
        if name not in seen:
            capped = " (data.max_samples is set)" if data.max_samples else ""
            raise DataError(
                f"{path}:{row}: label {name!r} in the {split} rows is never seen in "
                f"training{capped}; training knows {', '.join(sorted(seen)[:20])}.",
                "Add training rows of that label, mend the label, or remove the row.",
            )
    if len(seen) < 2:
        raise DataError(
            f"The training rows hold {len(seen)} class ({', '.join(seen)}); at least 2 are needed."
            if seen
            else "No training row holds a label.",
            "Check data.columns.label.",
        )
    if all(label.lstrip("-").isdecimal() for label in seen):
        return sorted(seen, key=lambda label: (int(label), label))
    return sorted(seen)


def _labelled(surveys: Sequence[Survey]) -> Iterator[tuple[str, str, int, str]]:
    for survey in surveys:
        for row, names, fate in zip(survey.rows, survey.classes, survey.fates, strict=True):
            if fate is not None and fate in SPLITS:
                for name in names:
                    yield fate, survey.path, row, name
