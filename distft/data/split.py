"""Which row goes to which split, and which rows stand twice. Pure and the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "eval", "test"]
SPLITS: tuple[Split, ...] = ("train", "eval", "test")

FATES = (
    "unusable",
    *SPLITS,
    "duplicate",
    "also_in_eval",
    "also_in_test",
    "beyond_max_samples",
    "near_duplicate",
    "near_eval",
    "near_test",
)
"""What becomes of a row: the split it goes to, or why it goes to none. A fate is kept as its
position here, one byte a row."""
UNUSABLE, TRAIN, EVAL, TEST, DUPLICATE, ALSO_IN_EVAL, ALSO_IN_TEST, BEYOND = range(8)
NEAR_DUPLICATE, NEAR_EVAL, NEAR_TEST = range(8, len(FATES))


@dataclass(frozen=True)
class Candidates:
    """What a split needs to know of usable rows: one array each, in file order."""

    keys: np.ndarray
    """uint64 (N, 2), what 16 bytes stand for: equal keys are the same input."""
    strata: np.ndarray
    """int32, the class kept in proportion, as its position in `names`."""
    names: Sequence[str]
    """Of the strata; where there is none, a single empty one."""
    origins: np.ndarray
    """uint8, TRAIN, EVAL or TEST: which setting named the row's file."""


def assign(
    rows: Candidates,
    shares: Mapping[Split, float],
    seed: int,
    mark_near: Callable[[np.ndarray], None] = lambda fates: None,
) -> np.ndarray:
    """Return the fate of every row.

    Rows of a test file win over those of an eval file, these over train. With shares, the first
    of equal inputs among the train files stays; without, their repetitions are the user's wish.

    Args:
        rows: All usable rows, in file order.
        shares: Share of the train files' rows for `eval`, `test` or both; a split without a
            share comes from files.
        seed: Decides which rows a share takes; equal rows, shares and seed give equal splits.
        mark_near: Sets the fates of rows that resemble another, before shares are drawn, so that
            no draw can part the two (see `distft.data.near`).

    Returns:
        One fate per row, in order; uint8.
    """
    fates = rows.origins.copy()
    if not len(fates):
        return fates
    order, groups = _groups(rows.keys)
    in_test, in_eval = (np.zeros(len(fates), bool) for _ in range(2))
    for found, origin in ((in_test, TEST), (in_eval, EVAL)):
        held = np.bincount(groups, rows.origins[order] == origin) > 0
        found[order] = held[groups]
    fates[in_test & (rows.origins != TEST)] = ALSO_IN_TEST
    fates[in_eval & ~in_test & (rows.origins == TRAIN)] = ALSO_IN_EVAL
    if shares:
        # The sort is stable: of equal keys that of a train file which stands first in the files.
        mine = fates[order] == TRAIN
        again = np.diff(groups[mine], prepend=-1) == 0
        fates[order[mine][again]] = DUPLICATE
    mark_near(fates)
    if shares:
        _share_out(rows, np.flatnonzero(fates == TRAIN), shares, seed, fates)
    return fates


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in order of their keys, and for each in that order the number of its key."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order, np.cumsum(new) - 1


def _share_out(
    rows: Candidates,
    pool: np.ndarray,
    shares: Mapping[Split, float],
    seed: int,
    fates: np.ndarray,
) -> None:
    # By hash of the input: the same whatever the order of the files.
    order = np.lexsort((_draws(rows.keys[pool], seed), rows.strata[pool]))
    pool = pool[order]
    counts = np.bincount(rows.strata[pool], minlength=len(rows.names))
    firsts = np.cumsum(counts) - counts
    groups = {name: i for i, name in enumerate(rows.names) if counts[i]}
    taken = dict.fromkeys(groups, 0)
    drawn: tuple[tuple[Split, int], ...] = (("test", TEST), ("eval", EVAL))
    for split, fate in drawn:
        if split not in shares:
            continue
        total = max(1, round(shares[split] * len(pool)))
        left = {name: int(counts[i]) - taken[name] for name, i in groups.items()}
        for name, count in quotas(left, total).items():
            first = firsts[groups[name]] + taken[name]
            fates[pool[first : first + count]] = fate
            taken[name] += count


def _draws(keys: np.ndarray, seed: int) -> np.ndarray:
    """Return a number for each key that decides how soon a share takes its row; uint64."""
    raw, secret = keys.astype(">u8").tobytes(), str(seed).encode()
    drawn = bytearray()
    for start in range(0, len(raw), 16):
        digest = hashlib.blake2b(raw[start : start + 16], digest_size=16, key=secret).digest()
        drawn += digest[:8]
    return np.frombuffer(bytes(drawn), ">u8").astype(np.uint64)


def quotas(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Return how many rows of each class to set aside, in proportion, leaving one of each.

    Args:
        counts: Rows per class.
        total: Rows to set aside; fewer where classes of one row leave no more.

    Returns:
        Rows per class, within one row of the exact proportion while classes are large enough.
    """
    names = sorted(counts)
    rows = sum(counts.values())
    result: dict[str, int] = {}
    seen = given = 0
    for name in names:
        seen += counts[name]
        due = (2 * seen * total + rows) // (2 * rows) - given
        given += due
        result[name] = min(due, counts[name] - 1)
    missing = total - sum(result.values())
    while missing > 0:
        name = max(names, key=lambda name: counts[name] - result[name], default="")
        if not name or counts[name] - result[name] < 2:
            break
        result[name] += 1
        missing -= 1
    return result
