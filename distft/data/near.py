"""Which rows resemble an earlier one: MinHash signatures, and their comparison. Pure.

A signature stands for the set of a text's runs of five words. Two signatures agree in about the
share of positions that the sets share of their runs (Jaccard), with a standard error of at most
0.045.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from distft.data.clean import texts_of
from distft.data.split import EVAL, NEAR_DUPLICATE, NEAR_EVAL, NEAR_TEST, TEST, TRAIN
from distft.overlap import words
from distft.plugin import Row

POSITIONS = 128
SIGNATURE_BYTES = 2 * POSITIONS
"""What a row takes on its way to the driver and there."""
SHINGLE_WORDS = 5
_MISSED = 0.01
"""Of pairs exactly as alike as the threshold, the share that may never be compared."""
_SEED = 42
_ODD = np.uint64(0x9E3779B97F4A7C15)


def signature(row: Row) -> bytes:
    """Return what stands for a row's input when rows are compared.

    Args:
        row: A canonical row, cleaned.

    Returns:
        256 bytes. Case, punctuation and spaces do not count; a text of fewer than five words is
        one run, so that only the same words resemble it.
    """
    from rensa import RMinHash

    text = "\n".join(" ".join(part) for part in texts_of(row, target=False))
    known = words(text)
    last = max(1, len(known) - SHINGLE_WORDS + 1)
    runs = [" ".join(known[i : i + SHINGLE_WORDS]) for i in range(last)] if known else [text]
    hashes = RMinHash(num_perm=POSITIONS, seed=_SEED)
    hashes.update(runs)
    # The lower half of each hash: two that differ agree in it once in 65,536.
    return np.array(hashes.digest(), np.uint32).astype("<u2").tobytes()


def rows_per_band(threshold: float) -> int:
    """Return how many positions are looked up at once.

    Args:
        threshold: From 0.5 to 1.

    Returns:
        The most with which two rows as alike as the threshold agree in a whole band nearly always.
    """
    able = [
        rows
        for rows in range(1, POSITIONS + 1)
        if (1 - threshold**rows) ** (POSITIONS // rows) <= _MISSED
    ]
    return max(able)


class NearRepeats:
    """Marks rows that resemble one that stays.

    Args:
        signatures: Of all usable rows in file order, one after the other.
        threshold: Share of common runs from which two rows resemble each other; None: none do.
    """

    def __init__(self, signatures: bytes | bytearray, threshold: float | None) -> None:
        self._signatures = np.frombuffer(signatures, "<u2").reshape(-1, POSITIONS)
        self._threshold = threshold
        self.likes: dict[int, int] = {}
        """Row that was left out -> the one it resembles."""

    def mark(self, fates: np.ndarray) -> None:
        """Set the fate of rows that resemble another.

        Test rows all stay. Eval rows go that resemble a test row, training rows that resemble a
        test row, an eval row that stays, or an earlier training row that stays.

        Args:
            fates: One per row; TRAIN, EVAL and TEST are looked at and changed in place.
        """
        if self._threshold is None:
            return
        rows = np.concatenate([np.flatnonzero(fates == fate) for fate in (TEST, EVAL, TRAIN)])
        kept: defaultdict[int, list[int]] = defaultdict(list)
        marks = {TEST: NEAR_TEST, EVAL: NEAR_EVAL, TRAIN: NEAR_DUPLICATE}
        for row, buckets in self._shared(rows, rows_per_band(self._threshold)):
            like = self._like(row, buckets, kept, fates)
            if like is None:
                for bucket in buckets:
                    kept[bucket].append(row)
            else:
                self.likes[row] = like
                fates[row] = marks[int(fates[like])]

    def _like(
        self,
        row: int,
        buckets: Sequence[int],
        kept: defaultdict[int, list[int]],
        fates: np.ndarray,
    ) -> int | None:
        """Return the row that this one resembles; of several a test row before an eval row."""
        if fates[row] == TEST:
            return None
        near: Iterable[int] = {one for bucket in buckets for one in kept.get(bucket, ())}
        others = np.array(sorted(near), np.int64)
        if fates[row] == EVAL:
            others = others[fates[others] == TEST]
        same = (self._signatures[others] == self._signatures[row]).mean(axis=1)
        others = others[same >= self._threshold]
        return max(others.tolist(), key=lambda other: (fates[other], -other), default=None)

    def _shared(self, rows: np.ndarray, size: int) -> Iterator[tuple[int, list[int]]]:
        """Yield, in order, each row that agrees with another in a band of positions.

        With it come the numbers of its buckets: one for every band and what stands in it.
        """
        places: list[np.ndarray] = [np.empty(0, np.int64)]
        buckets: list[np.ndarray] = [np.empty(0, np.int64)]
        count = 0
        for start in range(0, POSITIONS - size + 1, size):
            keys = np.zeros(len(rows), np.uint64)
            for column in range(start, start + size):
                keys = (keys ^ self._signatures[rows, column]) * _ODD
                keys ^= keys >> np.uint64(32)
            _, numbers, sizes = np.unique(keys, return_inverse=True, return_counts=True)
            mine = np.flatnonzero(sizes[numbers] > 1)
            places.append(mine)
            buckets.append(count + numbers[mine])
            count += len(sizes)
        at, held = np.concatenate(places), np.concatenate(buckets)
        order = np.argsort(at, kind="stable")
        at, held = at[order], held[order]
        ends = [*np.flatnonzero(np.diff(at, prepend=-1)).tolist(), len(at)]
        for first, stop in pairwise(ends):
            yield int(rows[at[first]]), held[first:stop].tolist()
