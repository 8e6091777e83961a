"""Training rows as the model sees them: pieces of text, which are trained, and what is wrong.

Loads no Ray. Nothing here refuses a row: this is where one looks after a refusal.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from distft import hf, scoring
from distft.config import RunConfig
from distft.data import locate, resolve
from distft.data.manifest import DroppedRow
from distft.data.pieces import Piece, pieces
from distft.data.split import FATES, TRAIN
from distft.data.stats import Surveyed, survey_files
from distft.data.survey import Reading
from distft.data.tokenize import encode_row
from distft.plugin import EncodeContext, Encoded, Row, Task, TrainsNothing, UnusableRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED_ROWS = 2000
"""Training rows that are tokenized; which ones is decided by the hash of their input."""

LISTED_ROWS = 10
"""Rows of each kind that are named; all are counted."""
_BINS = 16
_OUTSIDE = "O"
"""The tag of a word that is nothing: naming it at every word would hide the others."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ShownRow(_Part):
    """One row in full."""

    file: str
    row: int
    """As in messages: 1-based line of the file; of a JSON array the number of the element."""
    fate: str = "train"
    """Its split, or why it is in none; empty where that is not known."""
    tokens: int = 0
    """Of the input."""
    targets: int = 0
    """Terms that it adds to the loss."""
    truncated: bool = False
    pieces: list[Piece] = Field(default_factory=list)
    """Of the input; empty for a row that cannot be used."""
    target: list[Piece] = Field(default_factory=list)
    """What a decoder of its own is to write."""
    answer: str | None = None
    """Class, labels or number of a row that is trained as a whole."""
    reason: str = ""
    """Why the row cannot be used; empty for a good one."""
    raw: str = ""
    """A row that cannot be used, as it stands in the file."""


class Bin(_Part):
    """One bar of a histogram."""

    first: int
    """Fewest tokens."""
    last: int
    """Most tokens."""
    rows: int


class Preview(_Part):
    """What a look at the training rows of a configuration shows."""

    name: str
    model: str
    task: str
    format: str
    labels: list[str]
    cutoff_len: int
    rows: dict[str, int]
    """Rows per split."""
    complete: bool
    """False: files were read in part, and `rows` is extrapolated."""
    dropped: dict[str, int]
    """Reason -> rows read that are in no split."""
    dropped_rows: list[DroppedRow]
    """The first of each reason."""
    sampled: int
    """Training rows that were tokenized; what follows is counted in them."""
    tokens: int
    """Of the usable ones, targets of a decoder of its own included."""
    trained_tokens: int | None
    """Terms of the loss; None where a row is trained as a whole."""
    mean_tokens: float
    """Of an input, as the following."""
    median_tokens: int
    p95_tokens: int
    max_tokens: int
    histogram: list[Bin]
    truncated: int
    truncated_rows: list[DroppedRow]
    """The first of them."""
    untrained: int
    """Rows that would train nothing."""
    unusable: int
    """Other rows that cannot be tokenized."""
    refused: dict[str, int]
    """Reason -> rows, for both."""
    refused_rows: list[DroppedRow]
    """The first of both."""
    ended: int | None
    """Rows in which the end of an answer is trained; None where nothing is written."""
    masked: bool
    """A share of the marked tokens is hidden in every step anew, and only those are trained."""
    shown: list[ShownRow]


@dataclass(frozen=True)
class _Encoder:
    """What makes tokens of a row, and text of tokens."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    context: EncodeContext

    def encode(self, row: Row) -> Encoded | UnusableRow:
        # A row that was not counted, such as a repetition, may hold a class that no other does.
        for name in self.task.classes(row) if self.task.classes else ():
            if name not in self.context.labels:
                return UnusableRow(f"class {name!r} is not among those of the training rows")
        return encode_row(row, self.task, self.tokenizer, self.context)

    def show(self, reading: Reading, fate: str) -> ShownRow:
        row = ShownRow(file=reading.path, row=reading.row, fate=fate)
        unread = UnusableRow(reading.error.removeprefix(f"{reading.path}:{reading.row}: "))
        encoded = unread if reading.value is None else self.encode(reading.value)
        if isinstance(encoded, UnusableRow):
            row.reason = str(encoded)
            if reading.raw is not None:
                row.raw = json.dumps(reading.raw, ensure_ascii=False, default=str)
            return row
        row.tokens, row.truncated = len(encoded.input_ids), encoded.truncated
        row.targets = self.task.num_targets(encoded.labels)
        labels = encoded.labels if self.task.labels == "tokens" else []
        row.pieces = pieces(encoded.input_ids, self._trained(labels), self.tokenizer)
        if self.task.labels == "sequence":
            target = [int(label) for label in encoded.labels]
            row.target = pieces(target, self._trained(target), self.tokenizer)
        elif self.task.labels == "tokens" and self.task.classes:
            self._name_labels(row.pieces, labels)
        elif self.task.labels in ("class", "vector"):
            row.answer = self._answer(encoded.labels)
        return row

    def _trained(self, labels: Sequence[float]) -> list[bool]:
        trained = [label != scoring.IGNORED for label in labels]
        if trained and trained[0]:
            # Nothing predicts the first token of a language model.
            trained[0] = self.task.num_targets(labels[:1]) > 0
        return trained

    def _name_labels(self, shown: Sequence[Piece], labels: Sequence[float]) -> None:
        place = 0
        for piece in shown:
            names = [
                self.context.labels[int(label)]
                for label in labels[place : place + len(piece.ids)]
                if label != scoring.IGNORED
            ]
            piece.label = " ".join(name for name in names if name != _OUTSIDE)
            place += len(piece.ids)

    def _answer(self, labels: Sequence[float]) -> str:
        names = self.context.labels
        if self.task.labels == "class":
            return names[int(labels[0])]
        if not names:
            return " ".join(f"{value:g}" for value in labels)
        held = [name for name, value in zip(names, labels, strict=True) if value]
        return ", ".join(held) or "no label"


@dataclass
class _Tally:
    """What is counted in the sample."""

    lengths: list[int] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0
    ended: int = 0
    truncated: list[DroppedRow] = field(default_factory=list)
    untrained: int = 0
    refused: list[DroppedRow] = field(default_factory=list)

    def add(self, reading: Reading, encoded: Encoded | UnusableRow, task: Task) -> None:
        where = {"file": reading.path, "row": reading.row}
        if isinstance(encoded, UnusableRow):
            self.untrained += isinstance(encoded, TrainsNothing)
            self.refused.append(DroppedRow(**where, reason=str(encoded)))
            return
        written = len(encoded.labels) if task.labels == "sequence" else 0
        self.lengths.append(len(encoded.input_ids))
        self.tokens += len(encoded.input_ids) + written
        self.targets += task.num_targets(encoded.labels)
        if encoded.truncated:
            kept = f"shortened to {len(encoded.input_ids)} tokens"
            self.truncated.append(DroppedRow(**where, reason=kept))


def preview(
    config: RunConfig,
    *,
    rows: int,
    row: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Preview:
    """Return a look at the training rows, without preparing them.

    Args:
        config: The configuration.
        rows: How many rows are shown in full, picked by the hash of their input.
        row: Show this one instead, named as in messages: FILE:ROW.
        progress: Called with (rows tokenized, rows to tokenize).

    Returns:
        The look: counts of at most 2,000 training rows, and the rows that are shown.

    Raises:
        ConfigError: Format, task or length is wrong, or `row` names no row.
        DataError: The files hold no usable row, or cannot be read.
    """
    place = None if row is None else locate.place(row, config)
    found = survey_files(config, lambda reading, split, key: None)
    context = resolve.context(config, found.labels)
    tokenizer = hf.load_tokenizer(config.model, config.data.template)
    encoder = _Encoder(found.task, tokenizer, context)
    ends = found.task.ends(tokenizer) if found.task.ends else set()
    chosen = _chosen(found)
    wanted = set(chosen[:rows].tolist()) if place is None else set()
    tally, shown = _Tally(), []
    for done, (index, reading) in enumerate(_readings(found, chosen), start=1):
        assert reading.value is not None
        encoded = encoder.encode(reading.value)
        tally.add(reading, encoded, found.task)
        if isinstance(encoded, Encoded) and not ends.isdisjoint(encoded.labels):
            tally.ended += 1
        if index in wanted:
            shown.append(encoder.show(reading, FATES[TRAIN]))
        progress(done, len(chosen))
    if place is not None:
        reading, fate = locate.find(found, config, *place)
        shown.append(encoder.show(reading, fate))
    return _preview(config, found, tally, shown)


def _preview(config: RunConfig, found: Surveyed, tally: _Tally, shown: list[ShownRow]) -> Preview:
    task, lengths = found.task, np.array(tally.lengths or [0])
    by_reason = Counter(one.reason for one in tally.refused)
    dropped = dict(found.dropped.counts.most_common())
    firsts = {one.reason: one for one in reversed(found.dropped.rows)}
    median, p95 = np.percentile(lengths, [50, 95], method="higher")
    return Preview(
        name=config.name,
        model=config.model.id,
        task=task.name,
        format=found.readers["train"].format,
        labels=found.labels,
        cutoff_len=resolve.cutoff_len(config),
        rows=found.rows,
        complete=found.complete,
        dropped=dropped,
        dropped_rows=[firsts[reason] for reason in dropped if reason in firsts][:LISTED_ROWS],
        sampled=len(tally.lengths) + len(tally.refused),
        tokens=tally.tokens,
        trained_tokens=tally.targets if task.labels in ("tokens", "sequence") else None,
        mean_tokens=float(lengths.mean()),
        median_tokens=int(median),
        p95_tokens=int(p95),
        max_tokens=int(lengths.max()),
        histogram=histogram(tally.lengths),
        truncated=len(tally.truncated),
        truncated_rows=tally.truncated[:LISTED_ROWS],
        untrained=tally.untrained,
        unusable=len(tally.refused) - tally.untrained,
        refused=dict(by_reason.most_common()),
        refused_rows=tally.refused[:LISTED_ROWS],
        ended=tally.ended if task.ends else None,
        masked=task.masks_tokens,
        shown=shown,
    )


def histogram(lengths: Sequence[int]) -> list[Bin]:
    """Return how many rows have how many tokens, in at most 16 bins of a round width.

    Args:
        lengths: Tokens of each row, at least 1.

    Returns:
        Bins side by side, from the shortest row to the longest; empty ones between them count 0.
    """
    if not lengths:
        return []
    width = _width(min(lengths), max(lengths))
    first, last = (min(lengths) - 1) // width, (max(lengths) - 1) // width
    counts = np.bincount((np.array(lengths) - 1) // width - first, minlength=last - first + 1)
    return [
        Bin(first=(first + i) * width + 1, last=(first + i + 1) * width, rows=int(rows))
        for i, rows in enumerate(counts)
    ]


def _width(shortest: int, longest: int) -> int:
    for power in range(math.ceil(math.log10(longest + 1)) + 1):
        for factor in (1, 2, 5):
            width: int = factor * 10**power
            if (longest - 1) // width - (shortest - 1) // width < _BINS:
                return width
    raise AssertionError(f"{shortest} to {longest} tokens")


def _chosen(found: Surveyed) -> np.ndarray:
    """Return which training rows are tokenized, by index, those with the smallest hash first."""
    usable, candidates = found.survey.candidates()
    trained = found.survey.fates[usable] == TRAIN
    keys = candidates.keys[trained]
    chosen: np.ndarray = usable[trained][np.lexsort((keys[:, 1], keys[:, 0]))][:SAMPLED_ROWS]
    return chosen


def _readings(found: Surveyed, chosen: np.ndarray) -> Iterator[tuple[int, Reading]]:
    """Yield these rows in file order, read once more: keeping all of them takes too much memory."""
    for chunk, (place, mine) in zip(found.chunks, found.survey.by_chunk(), strict=True):
        left = set(chosen[(chosen >= mine.start) & (chosen < mine.stop)].tolist())
        reader = found.readers[place.origin]
        readings = enumerate(reader.read(chunk), start=mine.start) if left else ()
        for index, reading in readings:
            if index in left:
                left.remove(index)
                yield index, reading
            if not left:
                break
