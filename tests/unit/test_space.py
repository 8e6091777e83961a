"""Ranges, choices and limits as they are written: what reads, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from distft.config_file import parse
from distft.errors import ConfigError
from distft.space import Limit, Range, parse_limit, parse_values


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"low": 1e-5, "high": 1e-3, "log": True}, Range(1e-5, 1e-3, True)),
        ({"low": 2, "high": 8}, Range(2, 8, False)),
        ([4, 16, 4], (4, 16)),
        (["linear", "cosine"], ("linear", "cosine")),
        (0.1, (0.1,)),
        ("cosine", ("cosine",)),
        (True, (True,)),
    ],
)
def test_what_a_path_may_be(written: Any, read: Any) -> None:
    assert parse_values("train.x", written) == read


def test_a_range_is_whole_when_both_ends_are() -> None:
    assert Range(2, 8).whole
    assert not Range(2, 8.0).whole


@pytest.mark.parametrize(
    "written",
    [
        [],
        [[1], [2]],
        [None],
        {},
        {"low": 1},
        {"low": 1, "high": "2"},
        {"low": True, "high": 2},
        {"low": 1, "high": 2, "log": "yes"},
        {"low": 1, "high": 2, "step": 1},
        {"low": 2, "high": 2},
        {"low": 3, "high": 2},
        {"low": 0, "high": 2, "log": True},
        {"low": float("nan"), "high": 2.0},
        {"low": 0.1, "high": float("inf")},
    ],
)
def test_a_wrong_value_names_its_path(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^train\.x: "):
        parse_values("train.x", written)


@pytest.mark.parametrize(
    ("text", "name", "most"),
    [
        ("trainable_params <= 10M", "trainable_params", 10e6),
        ("trainable_params<=500000", "trainable_params", 500_000),
        (" trainable_params <= 1.5B ", "trainable_params", 1.5e9),
        ("trainable_params <= 2e6", "trainable_params", 2e6),
        ("peak_memory <= 24GB", "peak_memory", 24e9),
        ("peak_memory <= 24GiB", "peak_memory", 24 * 1024**3),
        ("peak_memory <= 0.5 TiB", "peak_memory", 1024**4 / 2),
    ],
)
def test_a_limit(text: str, name: str, most: float) -> None:
    assert parse_limit(text) == Limit(name, most, text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "params <= 10M",
        "trainable_params < 10M",
        "trainable_params >= 10M",
        "trainable_params <= M",
        "trainable_params <= -1",
        "trainable_params <= 0",
        "trainable_params <= 10X",
        "peak_memory <= 1.2.3GB",
        "peak_memory <= 24GB or so",
    ],
)
def test_a_wrong_limit_shows_how_one_is_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME is one of trainable_params, peak_memory; got"):
        parse_limit(text)


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"constraints": ["memory <= 3GB"]}, r"tune\.constraints.*NAME <= NUMBER"),
        ({"space": {"train.learning_rate": {"low": 1}}}, r"tune\.space.*train\.learning_rate: a r"),
        ({"methods": ["loar"]}, r"tune\.methods.*unknown method 'loar'; did you mean lora"),
        ({"methods": []}, r"tune\.methods"),
        (
            {"sampler": "gp", "constraints": ["peak_memory <= 3GB"]},
            r"tune: .*gp does not learn from refused trials; allowed .*: tpe",
        ),
        ({"num_trials": 0}, r"tune\.num_trials"),
        ({"confirm_seeds": 1}, r"tune\.confirm_seeds"),
    ],
)
def test_a_wrong_search_is_refused_as_it_is_read(tune: dict[str, Any], said: str) -> None:
    raw = {"name": "s", "model": "m", "data": {"train": "f"}, "tune": tune}
    with pytest.raises(ConfigError, match=said):
        parse(raw)
