"""What methods refuse: every rule is known to the matrix, stops a plan, and its remedy works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft import compat, plugin
from distft.capacity import GIB, Capacity
from distft.config_file import parse
from distft.data.stats import DataStats
from distft.errors import PlanError
from distft.plan import Plan, make_plan

REFUSED = [
    (method, setting, reason)
    for method, refuses in compat.matrix().items()
    for setting, reason in refuses.items()
]
CAPACITY = Capacity(nodes=1, cpus=4, memory_bytes=GIB, gpus=0, gpu_memory_bytes=0, source="a test")
PLACES = {"seq2seq": "tiny_t5", "causal_lm": "chat_llama", "sft": "chat_llama"}
"""Task -> fixture of a model for it, where tiny_bert is none."""


def plan_of(method: str, task: str, setting: str, model: Path) -> Plan:
    key, _, value = setting.partition("=")
    raw: dict[str, Any] = {
        "name": "x",
        "model": {"id": str(model)},
        "task": task,
        "data": {"train": "f"},
        "method": method,
        "cluster": {},
        "train": {},
    }
    if key == "engine":
        raw["cluster"] |= {"num_workers": 2}
    elif key != "task":
        section, _, name = key.partition(".")
        known = {"true": True, "false": False}
        raw[section][name] = known.get(value, int(value) if value.isdecimal() else value)
    labels = ["a", "b"] if plugin.tasks()[task].classes else []
    rows = {"train": 10, "eval": 2, "test": 2}
    stats = DataStats(rows, 8.0, 9, labels, exact=True)
    return make_plan(parse(raw), stats, CAPACITY)


def fitting_task(method: str) -> str:
    refuses = compat.matrix()[method]
    able = (task for task in ("seq_cls", "sft") if f"task={task}" not in refuses)
    return next(able)


@pytest.mark.parametrize("method", plugin.methods())
def test_rules_are_about_settings_there_are(method: str) -> None:
    refuses = compat.matrix()[method]
    assert set(refuses) <= set(compat.settings())
    for reason in refuses.values():
        assert len(reason) > 10
        assert not reason.endswith(".")
    assert any(f"task={task}" not in refuses for task in plugin.tasks())
    assert compat.STAGES[0] not in refuses, "one process trains it, or nothing does"


@pytest.mark.parametrize(("method", "setting", "reason"), REFUSED)
def test_a_refused_pair_stops_the_plan_and_its_remedy_works(
    method: str, setting: str, reason: str, request: pytest.FixtureRequest
) -> None:
    task = setting[5:] if setting.startswith("task=") else fitting_task(method)
    model = request.getfixturevalue(PLACES.get(task, "tiny_bert"))
    with pytest.raises(PlanError, match="does not go with") as caught:
        plan_of(method, task, setting, model)
    assert reason in str(caught.value)
    hint = caught.value.hint
    if setting.startswith("task="):
        others = hint.removeprefix("Methods that do: ").rstrip(".").split(", ")
        assert others
        assert method not in others
        assert plan_of(others[0], task, setting, model)
    else:
        changed = hint.removeprefix("Set ").split(",")[0].split(" ")[0].rstrip(".")
        assert plan_of(method, task, changed, model)


def test_an_automatic_stage_passes_over_refused_ones(tiny_bert: Path) -> None:
    for method, refuses in compat.matrix().items():
        if compat.DEEPSPEED in refuses:
            continue
        made = plan_of(method, fitting_task(method), "cluster.num_workers=2", tiny_bert)
        assert compat.STAGES[made.zero_stage] not in refuses


def test_the_table_shows_every_pair() -> None:
    lines = compat.table().splitlines()
    methods = plugin.methods()
    assert lines[0].count("|") == len(compat.settings()) + 2
    rows = {line.split("|")[1].strip(): line for line in lines[2 : 2 + len(methods)]}
    assert rows.keys() == methods.keys()
    for name, refuses in compat.matrix().items():
        assert rows[name].count(" no ") == len(refuses)
        for setting, reason in refuses.items():
            assert f"- `{name}` with `{setting}`: {reason}." in lines


def test_the_readme_shows_the_table() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert compat.table() in readme, "paste what `distft methods --matrix` prints"
