"""What a search draws from, and that a draw changes exactly what it says."""

from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest

from distft import compat, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.errors import ConfigError
from distft.search.sample import (
    GRID_POINTS,
    METHOD,
    build_space,
    draw,
    effective,
    grid,
    parameters,
    priors,
)
from distft.space import Range

RATE = "train.learning_rate"


def config(tune: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    raw = {
        "name": "s",
        "model": {"id": "m"},
        "task": "seq_cls",
        "data": {"train": "f", "format": "classification"},
        "tune": tune or {},
    }
    return parse({**raw, **sections})


def changed(before: dict[str, Any], after: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return dotted path -> new value of every leaf that differs."""
    found: dict[str, Any] = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= changed(old, new, f"{path}{key}.")
        elif old != new:
            found[f"{path}{key}"] = new
    return found


def test_every_method_brings_its_own_ranges() -> None:
    space = build_space(config({"methods": "all"}))
    able = [n for n, refuses in compat.matrix().items() if "task=seq_cls" not in refuses]
    assert list(space.methods) == [n for n in able if plugin.methods()[n].space]
    assert {"full", "freeze", "lora"} <= set(space.methods)
    for name in space.methods:
        assert space.methods[name] == plugin.methods()[name].space
    rates = {space.parameter(name, RATE) for name in space.methods}
    assert rates == {f"{name}:{RATE}" for name in space.methods}


def test_the_users_space_wins_and_adds() -> None:
    given = {
        RATE: {"low": 1e-5, "high": 1e-4, "log": True},
        "train.weight_decay": [0.0, 0.1],
        "train.warmup_steps": 0.2,
        "method.r": [4, 16],
        "method.lora_dropout": {"low": 0.0, "high": 0.2},
        "model.dropout": {"low": 0.0, "high": 0.3},
    }
    space = build_space(config({"space": given, "methods": ["lora", "full"]}))
    assert list(space.methods) == ["lora", "full"]
    common = {
        RATE: Range(1e-5, 1e-4, True),
        "train.weight_decay": (0.0, 0.1),
        "train.warmup_steps": (0.2,),
        "model.dropout": Range(0.0, 0.3),
    }
    own = {"method.r": (4, 16), "method.lora_dropout": Range(0.0, 0.2)}
    assert space.methods == {"lora": common | own, "full": common}
    assert space.parameter("lora", "train.weight_decay") == "train.weight_decay"
    assert space.parameter("lora", RATE) == f"lora:{RATE}"
    assert space.parameter("lora", "method.lora_dropout") == "lora:method.lora_dropout"
    assert space.plain()["full"]["train.warmup_steps"] == [0.2]
    assert space.plain()["lora"][RATE] == {"low": 1e-5, "high": 1e-4, "log": True}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"method.name": ["lora"]}, r"method\.name cannot be searched: tune\.methods"),
        ({"model.id": ["a", "b"]}, r"model\.id cannot be searched: one study is of one model"),
        ({"train.seed": [1, 2]}, r"train\.seed cannot be searched: tune\.confirm_seeds"),
        ({"train.max_steps": [1, 2]}, r"train\.max_steps cannot be searched: tune\.max_samples"),
        ({"cluster.num_workers": [1, 2]}, r"cluster\.num_workers cannot be searched: where"),
        ({"data.cutoff_len": [32, 64]}, r"data\.cutoff_len cannot be searched.*keys of train"),
        ({"learning_rate": [1e-4]}, r"learning_rate cannot be searched.*such as train\."),
        ({"train": [1]}, r"train cannot be searched"),
        ({"train.a.b": [1]}, r"train\.a\.b cannot be searched"),
        ({"method.rank": [4]}, r"no method of this search has method\.rank.*method\.r\b"),
        ({"train.learning_rat": [1e-4]}, r"train\.learning_rat.*did you mean .*learning_rate"),
        ({RATE: [1e-4, -1.0]}, r"train\.learning_rate: must be greater than 0"),
        ({RATE: {"low": 0.0, "high": 1.0}}, r"train\.learning_rate: must be greater than 0"),
        ({RATE: ["fast"]}, r'train\.learning_rate: .*got "fast"'),
        ({"method.r": [4, 0]}, r"method\.r: .*got 0"),
        ({"method.r": {"low": 2.0, "high": 8.0}}, r"method\.r: .*got 2\.0"),
        ({"model.dropout": [0.1, 1.0]}, r"model\.dropout.*less than 1"),
        ({"train.optim": ["adamw_torch", "adam"]}, r'train\.optim: must be .*got "adam"'),
    ],
)
def test_a_path_or_value_that_cannot_be_is_named(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build_space(config({"space": space}))
    assert "tune.space" in str(caught.value)


def test_a_method_that_is_not_searched_has_no_keys() -> None:
    with pytest.raises(ConfigError, match=r"no method of this search has method\.r"):
        build_space(config({"space": {"method.r": [4, 8]}, "methods": ["full"]}))


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_a_draw_changes_exactly_what_it_says(method: str) -> None:
    given = {"train.weight_decay": [0.0, 0.1], "train.optim": ["adamw_torch", "sgd"]}
    start = config({"space": given}, method={"name": "lora", "lora_alpha": 7})
    space = build_space(start)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = 0
    for number in range(60):
        sample = draw(space, study.ask())
        if sample[METHOD] != method:
            continue
        seen += 1
        made = effective(start, sample, name=f"trial-{number}", max_steps=9)
        base = start.dump()
        if method != "lora":
            base["method"] = plugin.methods()[method].config(name=method).model_dump()
        del base["tune"]
        plain = made.dump()
        assert plain.pop("tune") == config().dump()["tune"]
        differing = changed(base, plain)
        wanted = {**sample, "name": f"trial-{number}", "train.max_steps": 9}
        assert differing.items() <= wanted.items()
        for path, value in wanted.items():
            section, _, key = path.partition(".")
            assert (plain[section][key] if key else plain[section]) == value
        assert "method" not in base or method != "lora" or plain["method"]["lora_alpha"] == 7
    assert seen > 5


def test_the_configs_own_rate_belongs_to_its_own_method() -> None:
    start = config({}, method="lora", train={"learning_rate": 0.01})
    assert effective(start, {METHOD: "lora"}, name="t").train.learning_rate == 0.01
    assert effective(start, {METHOD: "full"}, name="t").train.learning_rate is None


def test_values_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.r"):
        effective(config(), {METHOD: "full", "method.r": 4}, name="t")


def test_a_search_that_names_no_method_tries_the_usual_ones() -> None:
    assert list(build_space(config()).methods) == ["freeze", "full", "lora"]


def test_priors_are_what_the_methods_files_say() -> None:
    every = config({"methods": "all"})
    found = {sample[METHOD]: sample for sample in priors(build_space(every), every)}
    assert list(found) == list(build_space(every).methods)
    for name in found:
        assert found[name][RATE] == plugin.methods()[name].learning_rate
    assert found["lora"]["method.r"] == 8
    assert found["freeze"]["method.trainable_layers"] == 2


def test_priors_keep_what_the_config_says_of_its_own_method() -> None:
    start = config(
        {
            "space": {
                "train.weight_decay": [0.0, 0.3],
                "train.warmup_steps": {"low": 0.1, "high": 1},
            }
        },
        method={"name": "lora", "r": 30},
        train={"learning_rate": 0.5, "weight_decay": 0.2},
    )
    found = {sample[METHOD]: sample for sample in priors(build_space(start), start)}
    lora = plugin.methods()["lora"].space[RATE]
    assert isinstance(lora, Range)
    assert found["lora"] == {
        METHOD: "lora",
        RATE: lora.high,
        "method.r": 32,
        "train.weight_decay": 0.3,
        "train.warmup_steps": 0.1,
    }
    assert found["full"][RATE] == plugin.methods()["full"].learning_rate


def test_an_enqueued_prior_is_drawn_as_it_is() -> None:
    start = config({"space": {"train.weight_decay": [0.0, 0.1], "train.warmup_steps": 0.2}})
    space = build_space(start)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    wanted = priors(space, start)
    for sample in wanted:
        named = parameters(space, sample)
        assert "train.warmup_steps" not in str(named)
        study.enqueue_trial(named)
    assert [draw(space, study.ask()) for _ in wanted] == wanted


def test_a_grid_holds_every_combination_once() -> None:
    given = {
        RATE: {"low": 1e-5, "high": 1e-1, "log": True},
        "method.r": {"low": 1, "high": 3},
        "train.weight_decay": [0.0, 0.1],
        "train.warmup_steps": {"low": 0.0, "high": 0.4},
    }
    samples = grid(build_space(config({"space": given, "methods": ["full", "lora"]})))
    rates = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    warm = [0.0, 0.1, 0.2, 0.3, 0.4]
    of_full = [s for s in samples if s[METHOD] == "full"]
    of_lora = [s for s in samples if s[METHOD] == "lora"]
    assert len(of_full) == GRID_POINTS * 2 * GRID_POINTS
    assert len(of_lora) == len(of_full) * 3
    found = [(s[RATE], s["train.weight_decay"], s["train.warmup_steps"]) for s in of_full]
    for one, other in zip(sorted(found), itertools.product(rates, [0.0, 0.1], warm), strict=True):
        assert one == pytest.approx(other)
    assert {s["method.r"] for s in of_lora} == {1, 2, 3}
    assert [s[METHOD] for s in samples[:4]] == ["full", "lora", "full", "lora"]
    assert (of_full[0][RATE], of_full[-1][RATE]) == (1e-5, 1e-1)
