"""`methods: all` on real Ray: every method's prior is tried first, and none of them fails."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from distft import api, plugin
from distft.config_file import load
from distft.records import read_record

STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "tune_studies.py"))
FURTHER = 2
"""Trials that the sampler draws after the priors."""

pytestmark = pytest.mark.slow


def test_every_method_of_a_task_is_tried_its_prior_first(
    ray_cluster: None, tiny_bert: Path, tmp_path: Path
) -> None:
    known = plugin.methods()
    path = STUDIES["write_config"](
        tmp_path,
        tiny_bert,
        train__max_steps=6,
        cluster__shape={"cpus": 1, "memory": "8GiB"},
        tune__methods="all",
        tune__num_trials=len(known) + FURTHER,
        tune__policy={"rungs": [0.5], "keep": [0.5]},
    )
    record = api.tune(load(path), plain=True)
    folder = load(path).run_dir
    trials = STUDIES["of"](folder)
    for trial in trials:
        print(trial.number, trial.method, trial.state, trial.value, trial.reason)

    assert list(record.space) == sorted(known), "every method goes with seq_cls"
    assert [trial.method for trial in trials[: len(known)]] == sorted(known)
    for trial in trials[: len(known)]:
        assert trial.params["train.learning_rate"] == known[trial.method].learning_rate
    assert len(trials) == len(known) + FURTHER
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    for trial in trials:
        assert trial.attempts == 1, trial.method
        assert trial.value is not None
        assert trial.samples == (96 if trial.state == "complete" else 48)
        assert trial.run is not None
        assert trial.run.peak_memory_bytes["measured"] > 0
        assert 0 < trial.run.model.trainable_params <= trial.run.model.params
    STUDIES["assert_ledger_is_the_journal"](folder)

    assert record.recommended is not None
    best = min(t.value or 0.0 for t in trials if t.state == "complete")
    assert trials[record.recommended].value == best
    winner = read_record(folder / "winner")
    assert winner.status == "completed"
    assert winner.config["method"]["name"] == trials[record.recommended].method
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in known)
