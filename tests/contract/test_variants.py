"""What the files of methods/, tasks/ and formats/ say: keys, ranges, sources, examples."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft import plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.plugin import Method, Task
from distft.space import Range

METHODS, TASKS = plugin.methods(), plugin.tasks()
FACTS = {
    path.stem: runpy.run_path(str(path))
    for path in sorted((Path(__file__).parent / "facts").glob("*.py"))
}


def variant_configs(section: str) -> list[Any]:
    known = METHODS if section == "method" else TASKS
    return [(section, name) for name in known]


@pytest.mark.parametrize(
    ("section", "name"), [*variant_configs("method"), *variant_configs("task")]
)
def test_config_survives_dump_and_parse(section: str, name: str) -> None:
    settings = FACTS[name]["SETTINGS"] if section == "method" else {}
    raw = {"name": "x", "model": "m", "data": {"train": "f"}, section: {"name": name, **settings}}
    config = parse(raw)
    again = parse(config.dump())
    assert again == config
    assert again.dump() == config.dump()
    assert getattr(again, section).model_dump() | settings == getattr(config, section).model_dump()


def with_values(name: str, values: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {"name": "x", "model": "m", "data": {"train": "f"}}
    raw["method"] = {"name": name}
    for dotted, value in values.items():
        section, key = dotted.split(".")
        raw.setdefault(section, {})[key] = value
    return parse(raw)


@pytest.mark.parametrize("name", METHODS)
def test_every_corner_of_a_search_space_is_a_valid_config(name: str) -> None:
    space = METHODS[name].space
    assert "train.learning_rate" in space
    axes = [
        [(key, value) for value in ((axis.low, axis.high) if isinstance(axis, Range) else axis)]
        for key, axis in space.items()
    ]
    for corner in itertools.product(*axes):
        config = with_values(name, dict(corner))
        for dotted, value in corner:
            section, key = dotted.split(".")
            assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize("name", METHODS)
@settings(deadline=None)
@given(data=st.data())
def test_every_point_of_a_search_space_is_a_valid_config(name: str, data: st.DataObject) -> None:
    values = {}
    for key, axis in METHODS[name].space.items():
        if isinstance(axis, Range):
            assert axis.low < axis.high
            assert axis.low > 0 or not axis.log
            values[key] = data.draw(st.floats(axis.low, axis.high), label=key)
        else:
            values[key] = data.draw(st.sampled_from(axis), label=key)
    config = with_values(name, values)
    assert parse(config.dump()) == config


@pytest.mark.parametrize("name", METHODS)
def test_the_default_rate_lies_in_the_space(name: str) -> None:
    axis = METHODS[name].space["train.learning_rate"]
    assert isinstance(axis, Range)
    assert axis.low <= METHODS[name].learning_rate <= axis.high


def test_every_method_has_its_facts() -> None:
    assert FACTS.keys() == METHODS.keys()


VARIANTS = [*METHODS.values(), *TASKS.values()]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variants_say_what_they_are_and_whence(variant: Method | Task) -> None:
    assert 10 <= len(variant.summary) <= 100
    assert not variant.summary.endswith(".")
    assert any(part.isdigit() and len(part) == 4 for part in _words(variant.source)), (
        "a source names its year"
    )
    for key, field in variant.config.model_fields.items():
        assert field.description, f"{variant.name}.{key} has no documentation"
    assert variant.config.model_fields["name"].default == variant.name


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text).split()


@pytest.mark.parametrize("form", plugin.formats().values(), ids=lambda form: form.name)
def test_formats_say_what_they_are_and_read_their_example(form: plugin.Format) -> None:
    assert 10 <= len(form.summary) <= 100
    assert form.target in form.columns
    row = form.read(form.example, form.columns)
    fitting = [task for task in TASKS.values() if form.row in task.rows]
    assert fitting, f"no task learns from {form.row} rows"
    for task in fitting:
        assert task.key(row)
