"""Which row goes to which split, and which rows stand twice. Pure and the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "eval", "test"]
SPLITS: tuple[Split, ...] = ("train", "eval", "test")

Part = str
"""What named a row's file: one of SPLITS, or `mix1`, `mix2`, ... for the sets of `data.mix`."""

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

_MIXED = "mix"


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
    """uint8, the `code_of` the part that named the row's file."""


def code_of(part: Part) -> int:
    """Return the number of a part.

    Args:
        part: What named a row's file.

    Returns:
        Of a split its fate; those of mixed sets follow.
    """
    if part.startswith(_MIXED):
        return len(SPLITS) + int(part.removeprefix(_MIXED))
    return TRAIN + SPLITS.index(part)


def parts_of(sets: int) -> list[Part]:
    """Return all parts, in the order of their codes.

    Args:
        sets: How many `data.mix` names.

    Returns:
        The splits, then the mixed sets.
    """
    return [*SPLITS, *(f"{_MIXED}{number}" for number in range(1, sets + 1))]


def assign(
    rows: Candidates,
    shares: Mapping[Split, float],
    seed: int,
    mark_near: Callable[[np.ndarray], None] = lambda fates: None,
) -> np.ndarray:
    """Return the fate of every row.

    Rows of a test file win over those of an eval file, these over train. With shares, the first
    of equal inputs among the train files stays; without, their repetitions are the user's wish.
    Mixed sets are trained on, each by the same rules; they never change what eval and test hold,
    and may repeat one another and the train files: naming both is the user's wish.

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
    fates = np.where(rows.origins > len(SPLITS), np.uint8(TRAIN), rows.origins)
    if not len(fates):
        return fates
    order, groups = _groups(rows.keys)
    in_test, in_eval = (_held(order, groups, rows.origins == each) for each in (TEST, EVAL))
    fates[in_test & (rows.origins != TEST)] = ALSO_IN_TEST
    fates[in_eval & (fates == TRAIN)] = ALSO_IN_EVAL
    if shares:
        for part in np.unique(rows.origins[fates == TRAIN]):
            # The sort is stable: of equal keys that which stands first in the files.
            mine = ((fates == TRAIN) & (rows.origins == part))[order]
            again = np.diff(groups[mine], prepend=-1) == 0
            fates[order[mine][again]] = DUPLICATE
    mark_near(fates)
    if shares:
        pool = np.flatnonzero((fates == TRAIN) & (rows.origins == TRAIN))
        _share_out(rows, pool, shares, seed, fates)
        mixed = (fates == TRAIN) & (rows.origins > len(SPLITS))
        for drawn, fate in ((TEST, ALSO_IN_TEST), (EVAL, ALSO_IN_EVAL)):
            fates[mixed & _held(order, groups, fates == drawn)] = fate
    return fates


def _held(order: np.ndarray, groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return for each row whether a row of the same key is chosen."""
    found = np.zeros(len(chosen), bool)
    found[order] = (np.bincount(groups, chosen[order]) > 0)[groups]
    return found


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
