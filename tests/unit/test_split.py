"""Splits: disjoint, in proportion, the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from distft.data.split import Candidate, assign, quotas

SHARES = {"eval": 0.1, "test": 0.1}


def train(key: str, stratum: str | None = None) -> Candidate:
    return Candidate(key.encode(), stratum, "train")


rows_of_classes = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from("abcde")), min_size=1, max_size=200
).map(lambda pairs: [train(f"{number}{name}", name) for number, name in pairs])


@given(rows=rows_of_classes, seed=st.integers(0, 9), share=st.sampled_from([0.05, 0.1, 0.3]))
def test_every_input_is_in_exactly_one_split(
    rows: list[Candidate], seed: int, share: float
) -> None:
    fates = assign(rows, {"eval": share, "test": share}, seed)
    kept = [row.key for row, fate in zip(rows, fates, strict=True) if fate != "duplicate"]
    assert sorted(kept) == sorted({row.key for row in rows})
    assert set(fates) <= {"train", "eval", "test", "duplicate"}
    seen: set[bytes] = set()
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
    for split in ("eval", "test"):
        got = Counter(row.stratum for row, fate in zip(rows, fates, strict=True) if fate == split)
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


def test_files_test_wins_over_eval_over_train() -> None:
    rows = [
        *(train(key) for key in "abcdd"),
        *(Candidate(key.encode(), None, "eval") for key in "bc"),
        *(Candidate(key.encode(), None, "test") for key in "ac"),
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
    rows += [Candidate(str(i).encode(), None, "test") for i in range(10)]
    fates = assign(rows, {"eval": 0.5}, 0)
    assert fates[:10] == ["also_in_test"] * 10
    assert Counter(fates) == {"also_in_test": 10, "train": 20, "eval": 20, "test": 10}


def test_pythons_hash_seed_changes_nothing() -> None:
    code = (
        "from distft.data.split import Candidate, assign\n"
        "rows = [Candidate(str(i % 70).encode(), 'abc'[i % 3], 'train') for i in range(90)]\n"
        "print(assign(rows, {'eval': 0.2, 'test': 0.1}, 4))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1
    assert "eval" in outputs.pop()
