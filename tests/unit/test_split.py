"""Splits: disjoint, in proportion, the same everywhere."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distft.data import split
from distft.data.split import FATES, Candidates, code_of, parts_of, quotas
from distft.data.survey import key_of

SHARES = {"eval": 0.1, "test": 0.1}


class Row(NamedTuple):
    key: str
    stratum: str = ""
    origin: str = "train"


def assign(rows: Sequence[Row], shares: dict[str, float], seed: int) -> list[str]:
    """Return the names of the rows' fates."""
    names = sorted({row.stratum for row in rows})
    keys = np.frombuffer(b"".join(key_of(row.key) for row in rows), ">u8").astype(np.uint64)
    strata = np.array([names.index(row.stratum) for row in rows], np.int32)
    origins = np.array([code_of(row.origin) for row in rows], np.uint8)
    found = split.assign(Candidates(keys.reshape(-1, 2), strata, names, origins), shares, seed)
    return [FATES[fate] for fate in found]


def train(key: str, stratum: str = "") -> Row:
    return Row(key, stratum)


rows_of_classes = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from("abcde")), min_size=1, max_size=200
).map(lambda pairs: [train(f"{number}{name}", name) for number, name in pairs])


@given(rows=rows_of_classes, seed=st.integers(0, 9), share=st.sampled_from([0.05, 0.1, 0.3]))
def test_every_input_is_in_exactly_one_split(rows: list[Row], seed: int, share: float) -> None:
    fates = assign(rows, {"eval": share, "test": share}, seed)
    kept = [row.key for row, fate in zip(rows, fates, strict=True) if fate != "duplicate"]
    assert sorted(kept) == sorted({row.key for row in rows})
    assert set(fates) <= {"train", "eval", "test", "duplicate"}
    seen: set[str] = set()
    for row, fate in zip(rows, fates, strict=True):
        assert (fate == "duplicate") == (row.key in seen)
        seen.add(row.key)
    classes = {row.stratum for row in rows}
    trained = {row.stratum for row, fate in zip(rows, fates, strict=True) if fate == "train"}
    assert trained == classes


@given(
    counts=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 500), min_size=1),
    share=st.floats(0.01, 0.5),
)
def test_quotas_add_up_and_leave_one_of_each(counts: dict[str, int], share: float) -> None:
    total = max(1, round(share * sum(counts.values())))
    result = quotas(counts, total)
    room = sum(count - 1 for count in counts.values())
    assert sum(result.values()) == min(total, room)
    assert all(0 <= result[name] < counts[name] for name in counts)


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.integers(20, 500), min_size=1),
    share=st.floats(0.05, 0.3),
)
def test_every_class_keeps_its_proportion(counts: dict[str, int], share: float) -> None:
    rows = [train(f"{name}{i}", name) for name, count in counts.items() for i in range(count)]
    fates = assign(rows, {"eval": share, "test": share}, 1)
    for part in ("eval", "test"):
        got = Counter(row.stratum for row, fate in zip(rows, fates, strict=True) if fate == part)
        for name, count in counts.items():
            assert abs(got[name] - share * count) <= 2


def test_a_class_with_one_row_is_trained_on() -> None:
    rows = [train("only", "rare"), *(train(str(i), "common") for i in range(40))]
    for seed in range(50):
        assert assign(rows, SHARES, seed)[0] == "train"


def test_two_rows_cannot_fill_three_splits() -> None:
    assert Counter(assign([train("a"), train("b")], SHARES, 0)) == {"train": 1, "test": 1}


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = [train(str(i), "xy"[i % 2]) for i in range(100)]
    fates = dict(zip((row.key for row in rows), assign(rows, SHARES, 5), strict=True))
    turned = rows[::-1]
    assert dict(zip((r.key for r in turned), assign(turned, SHARES, 5), strict=True)) == fates
    assert list(fates.values()) != assign(rows, SHARES, 6)


def test_parts_are_numbered_in_order() -> None:
    assert parts_of(2) == ["train", "eval", "test", "mix1", "mix2"]
    assert [code_of(part) for part in parts_of(12)] == list(range(1, 16))


keys = st.lists(st.integers(0, 30).map(str), min_size=1, max_size=60)


@given(mine=keys, one=keys, other=keys, seed=st.integers(0, 3), by_share=st.booleans())
def test_mixed_sets_change_no_split_and_train_on_nothing_that_is_held_out(
    mine: list[str], one: list[str], other: list[str], seed: int, by_share: bool
) -> None:
    rows = [train(key) for key in mine]
    shares = {"eval": 0.2, "test": 0.2} if by_share else {}
    if not by_share:
        rows += [Row("1", origin="eval"), Row("2", origin="eval"), Row("3", origin="test")]
    alone = assign(rows, shares, seed)
    mixed = [*(Row(key, "", "mix1") for key in one), *(Row(key, "", "mix2") for key in other)]
    fates = assign([*rows, *mixed], shares, seed)
    assert fates[: len(rows)] == alone
    held = {fate: {r.key for r, f in zip(rows, alone, strict=True) if f == fate} for fate in alone}
    seen: set[tuple[str, str]] = set()
    for row, fate in zip(mixed, fates[len(rows) :], strict=True):
        again = by_share and (row.origin, row.key) in seen
        seen.add((row.origin, row.key))
        possible = {
            "also_in_test": row.key in held.get("test", ()),
            "also_in_eval": row.key in held.get("eval", ()),
            "duplicate": again,
            # A row of data.train or of another set may stand in this one, too.
            "train": not again and not any(row.key in held.get(s, ()) for s in ("eval", "test")),
        }
        assert possible[fate]


def test_files_test_wins_over_eval_over_train() -> None:
    rows = [
        *(train(key) for key in "abcdd"),
        *(Row(key, origin="eval") for key in "bc"),
        *(Row(key, origin="test") for key in "ac"),
    ]
    assert assign(rows, {}, 0) == [
        "also_in_test",
        "also_in_eval",
        "also_in_test",
        "train",
        "train",  # without shares a repetition is the user's wish
        "eval",
        "also_in_test",
        "test",
        "test",
    ]


def test_a_share_never_takes_rows_of_the_other_splits_file() -> None:
    rows = [train(str(i)) for i in range(50)]
    rows += [Row(str(i), origin="test") for i in range(10)]
    fates = assign(rows, {"eval": 0.5}, 0)
    assert fates[:10] == ["also_in_test"] * 10
    assert Counter(fates) == {"also_in_test": 10, "train": 20, "eval": 20, "test": 10}


def test_the_draw_is_a_published_algorithm() -> None:
    # Recorded: data prepared again, anywhere and with any version, fall into the same splits.
    fates = assign([train(str(i), "ab"[i % 2]) for i in range(12)], {"eval": 0.2, "test": 0.2}, 7)
    assert "".join(fate[1] for fate in fates) == "rvrerrvrrrer"


def test_a_million_rows_take_little_memory_and_no_object_each() -> None:
    keys = np.random.default_rng(0).integers(0, 1 << 63, (50_000, 2), dtype=np.uint64)
    zeros = np.zeros(len(keys), np.int32)
    candidates = Candidates(keys, zeros, [""], np.ones(len(keys), np.uint8))
    tracemalloc.start()
    fates = split.assign(candidates, SHARES, 0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.bincount(fates).tolist() == [0, 40_000, 5_000, 5_000]
    assert peak_bytes < 200 * len(keys)
