"""Near-duplicates: signatures tell how alike rows are, and none of a pair is on both sides."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distft.data.near import POSITIONS, SIGNATURE_BYTES, NearRepeats, rows_per_band, signature
from distft.data.split import EVAL, FATES, TEST, TRAIN

ORIGINS = {"train": TRAIN, "eval": EVAL, "test": TEST}


def text(start: int, count: int = 60) -> str:
    """Return words of which neighbouring starts share most runs of five."""
    return " ".join(f"w{number}" for number in range(start, start + count))


def marked(
    rows: Sequence[tuple[str, str]], threshold: float = 0.8
) -> tuple[list[str], NearRepeats]:
    near = NearRepeats(b"".join(signature({"text": text}) for _, text in rows), threshold)
    fates = np.array([ORIGINS[origin] for origin, _ in rows], np.uint8)
    near.mark(fates)
    return [FATES[fate] for fate in fates], near


def alike(first: str, second: str) -> float:
    one, other = (np.frombuffer(signature({"text": t}), "<u2") for t in (first, second))
    return float((one == other).mean())


@pytest.mark.parametrize("shift", [0, 2, 6, 14, 30])
def test_signatures_tell_the_share_of_common_runs(shift: int) -> None:
    runs = 200 - 4
    wanted = (runs - shift) / (runs + shift)
    got = [alike(text(i, 200), text(i + shift, 200)) for i in range(0, 20_000, 1000)]
    # Of 20 pairs: the standard error of the mean is at most 0.01.
    assert np.mean(got) == pytest.approx(wanted, abs=0.04)
    assert max(abs(one - wanted) for one in got) <= 0.17


def test_a_signature_is_small_and_the_same_everywhere() -> None:
    row = {"text": "The film is good."}
    assert len(signature(row)) == SIGNATURE_BYTES == 2 * POSITIONS
    # Recorded: rows read on several machines are compared with each other.
    assert np.frombuffer(signature(row), "<u2")[:4].tolist() == [33386, 57788, 56711, 44997]


def test_what_a_signature_looks_at() -> None:
    assert alike("The film, is GOOD!", "the film is good") == 1
    assert alike("the film is good", "the film is bad") == 0, "a short text is one run"
    chinese = "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d\u770b\u6211\u559c\u6b22\u5b83\u7684\u97f3\u4e50"
    assert 0.3 < alike(chinese, chinese + "\u5417") < 1
    assert alike("!!!", "???") == 0
    same = {"source": text(0), "target": "a"}, {"source": text(0), "target": "b"}
    assert signature(same[0]) == signature(same[1]), "what is to be written is no input"
    words = {"words": text(0).split(), "tags": None}
    said = {"messages": [{"role": "user", "content": text(0)}]}
    assert signature(words) == signature(said) == signature({"text": text(0)})


def test_later_training_rows_go_and_chains_are_not_followed() -> None:
    # Neighbours are alike, the ends are not: the third stays, for the second has gone.
    first, second, third = text(0), text(6), text(12)
    assert min(alike(first, second), alike(second, third)) >= 0.72 > alike(first, third)
    fates, near = marked([("train", one) for one in (first, second, third, text(500))], 0.72)
    assert fates == ["train", "near_duplicate", "train", "train"]
    assert near.likes == {1: 0}


def test_test_wins_over_eval_over_train_wherever_they_stand() -> None:
    a, b, c = text(0), text(1000), text(2000)
    rows = [
        *(("train", t) for t in (a + " x", b + " x", c + " x", c + " y")),
        *(("eval", t) for t in (a + " e", b + " e", b + " f")),
        *(("test", t) for t in (a, a + " t")),
    ]
    fates, _ = marked(rows)
    assert fates == [
        *("near_test", "near_eval", "train", "near_duplicate"),
        # Rows given for measuring are never dropped for each other.
        *("near_test", "eval", "eval", "test", "test"),
    ]


def test_a_row_between_an_eval_and_a_test_row_counts_as_the_test_rows() -> None:
    rows = [("eval", text(12)), ("train", text(6)), ("test", text(0))]
    assert marked(rows, 0.72)[0] == ["eval", "near_test", "test"]


def test_no_threshold_marks_nothing() -> None:
    near = NearRepeats(b"", None)
    fates = np.array([TRAIN, TRAIN], np.uint8)
    near.mark(fates)
    assert fates.tolist() == [TRAIN, TRAIN]


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(sorted(ORIGINS)), st.integers(0, 40), st.booleans()), max_size=25
    )
)
def test_no_row_stays_that_equals_one_of_another_split(
    rows: list[tuple[str, int, bool]],
) -> None:
    given_rows = [(origin, text(20 * k).upper() if up else text(20 * k)) for origin, k, up in rows]
    fates, near = marked(given_rows)
    for (origin, mine), fate in zip(given_rows, fates, strict=True):
        before = {o for o, other in given_rows if other.lower() == mine.lower()}
        if origin == "test" or before == {"eval"}:
            assert fate == origin
        elif "test" in before:
            assert fate == "near_test"
        elif "eval" in before:
            assert fate in ("eval", "near_eval")
            assert (fate == "eval") == (origin == "eval")
    kept = {t.lower() for (_, t), fate in zip(given_rows, fates, strict=True) if fate == "train"}
    assert fates.count("train") == len(kept)
    assert all(
        fates[like] in ORIGINS and fates[row] not in ORIGINS for row, like in near.likes.items()
    )


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_alike_rows_are_found_among_many(threshold: float) -> None:
    band = rows_per_band(threshold)
    assert (1 - threshold**band) ** (POSITIONS // band) <= 0.01
    drawn = random.Random(5)
    originals = [" ".join(str(drawn.randrange(10**6)) for _ in range(120)) for _ in range(200)]
    copies = [f"{one.rsplit(' ', 1)[0]}" if threshold < 1 else one for one in originals]
    fates, near = marked([("train", one) for one in originals + copies], threshold)
    assert fates[:200] == ["train"] * 200
    assert fates[200:].count("near_duplicate") >= 198
    assert all(like == row - 200 for row, like in near.likes.items())
