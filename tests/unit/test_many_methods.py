"""A search over many methods: refused where none could win, told apart in its report."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from distft import api, plugin
from distft.config_file import load
from distft.errors import PlanError
from distft.report.study_marks import marks
from distft.report.study_tables import leaderboard

STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "tune_studies.py"))


def test_methods_whose_winner_could_not_be_trained_are_refused_first(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Each trial has one worker and would run; the winner's workers need DeepSpeed."""
    path = STUDIES["write_config"](
        tmp_path,
        tiny_bert,
        cluster__num_workers=2,
        cluster__zero_stage=2,
        cluster__shape={"cpus": 4, "memory": "8GiB"},
        tune__methods=["adalora"],
        tune__num_workers=1,
    )
    with pytest.raises(PlanError, match="adalora") as caught:
        api.tune(load(path), plain=True)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "runs" / "study").exists()


def content(params: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A study's document with one whole trial per method."""
    trials = [
        {
            "study": "search",
            "number": number,
            "method": method,
            "params": {"method.name": method, **own},
            "value": 1.0 + number,
            "state": "complete",
            "samples": 64,
            "duration_s": 1.0,
            "saved_bytes": 0,
            "reused_from": None,
            "attempts": 1,
            "run": None,
            "values": [1.0 + number],
        }
        for number, (method, own) in enumerate(params.items())
    ]
    study = {
        "space": {method: {} for method in params},
        "objective": ["eval_loss"],
        "greater_is_better": [False],
        "candidates": [],
        "recommended": 0,
        "samples_per_trial": 64,
    }
    return {"study": study, "trials": trials}


def test_every_method_has_a_look_of_its_own() -> None:
    methods = plugin.methods()
    found = marks(content({name: {} for name in methods}))
    assert list(found) == list(methods)
    assert len(set(found.values())) == len(methods) > 8


def test_parameters_of_single_methods_share_a_column() -> None:
    own = {
        name: {
            "train.learning_rate": 1e-3,
            **{path: 2 for path in method.space if "method" in path},
        }
        for name, method in plugin.methods().items()
    }
    section = leaderboard(content(own))
    assert section is not None
    (table,) = section.tables
    assert list(table.head[:5]) == ["trial", "method", "learning rate", "with", "loss"]
    by_method = {row[1].text: row[3].text for row in table.rows}
    assert by_method["full"] == "-"
    assert re.fullmatch("rank 2", by_method["lora"])
    assert all(len(row) == len(table.head) for row in table.rows)
