"""Which row goes to which split, and which rows stand twice. Pure and the same everywhere."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "eval", "test"]
SPLITS: tuple[Split, ...] = ("train", "eval", "test")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a split needs to know of one usable row."""

    key: bytes
    """Stands for the row's input; equal keys are the same input."""
    stratum: str | None
    """Class kept in proportion; None where there is none."""
    origin: Split
    """Which setting named the row's file."""


Fate = Split | Literal["duplicate", "also_in_eval", "also_in_test"]
"""The split a row goes to, or why it goes to none."""


def assign(rows: Sequence[Candidate], shares: Mapping[Split, float], seed: int) -> list[Fate]:
    """Return the fate of every row.

    Rows of a test file win over those of an eval file, these over train. With shares, the first
    of equal inputs among the train files stays; without, their repetitions are the user's wish.

    Args:
        rows: All usable rows, in file order.
        shares: Share of the train files' rows for `eval`, `test` or both; a split without a
            share comes from files.
        seed: Decides which rows a share takes; equal rows, shares and seed give equal splits.

    Returns:
        One fate per row, in order.
    """
    fates: list[Fate] = [row.origin for row in rows]
    keys = {split: {row.key for row in rows if row.origin == split} for split in SPLITS[1:]}
    first: set[bytes] = set()
    pool: list[int] = []
    for i, row in enumerate(rows):
        if row.origin != "test" and row.key in keys["test"]:
            fates[i] = "also_in_test"
        elif row.origin == "train" and row.key in keys["eval"]:
            fates[i] = "also_in_eval"
        elif row.origin == "train" and shares:
            if row.key in first:
                fates[i] = "duplicate"
            else:
                first.add(row.key)
                pool.append(i)
    _share_out(rows, pool, shares, seed, fates)
    return fates


def _share_out(
    rows: Sequence[Candidate],
    pool: Sequence[int],
    shares: Mapping[Split, float],
    seed: int,
    fates: list[Fate],
) -> None:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in pool:
        groups[rows[i].stratum or ""].append(i)
    for members in groups.values():
        # By hash of the input: the same whatever the order of the files.
        members.sort(key=lambda i: _draw(seed, rows[i].key))
    taken = dict.fromkeys(groups, 0)
    for split in ("test", "eval"):
        if split not in shares:
            continue
        total = max(1, round(shares[split] * len(pool)))
        left = {name: len(members) - taken[name] for name, members in groups.items()}
        for name, count in quotas(left, total).items():
            for i in groups[name][taken[name] : taken[name] + count]:
                fates[i] = split
            taken[name] += count


def _draw(seed: int, key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16, key=str(seed).encode()).digest()


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
