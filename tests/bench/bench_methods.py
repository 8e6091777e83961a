"""Every method on every task with real models: quality on held-out rows, and what it costs.

    make bench PYTEST_ARGS="-k methods"
    METHODS=full,lora TASKS=seq_cls make bench PYTEST_ARGS="-k methods"

Each cell is one run of distft's loop in a process of its own with one thread: a packaged model on
packaged data, the same steps for every method of a task, rates fixed before by one rule (FASTER).
Cells that build/bench/methods.json holds already are not run again: stop and start it at will. The
margins below were set in advance and are asserted; times are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distft import compat, plugin

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "build" / "bench" / "methods.json"

MINILM = {"model": "asset:minilm-l6", "steps": 60, "batch": 16, "cutoff_len": 64}
SMOLLM2 = {"model": "asset:smollm2-135m-instruct", "steps": 30, "batch": 4, "cutoff_len": 96}
PLACES: dict[str, dict[str, Any]] = {
    "seq_cls": {**MINILM, "data": "asset:vader-amazon"},
    "regression": {**MINILM, "data": "asset:vader-tweets"},
    "token_cls": {**MINILM, "data": "asset:wnut-ner", "steps": 150},
    "masked_lm": {**MINILM, "data": "asset:vader-movie-text"},
    "causal_lm": {**SMOLLM2, "data": "asset:vader-movie-text"},
    "sft": {**SMOLLM2, "data": "asset:chatterbot-english"},
}
"""Task -> where it is tried. There is no packaged pre-trained model for seq2seq."""

FASTER = 5
"""Runs of so few steps want higher rates than the methods' defaults, all by the same factor."""
MOST = 3e-2
"""But none above this."""

SHOWN = {
    "seq_cls": "accuracy",
    "regression": "mse",
    "token_cls": "entity_f1",
    "masked_lm": "loss",
    "causal_lm": "loss",
    "sft": "loss",
}


def cells() -> Iterator[tuple[str, str]]:
    """Yield (task, method) of every cell that is allowed and asked for."""
    methods = os.environ.get("METHODS", "").split(",") if os.environ.get("METHODS") else None
    tasks = os.environ.get("TASKS", "").split(",") if os.environ.get("TASKS") else None
    matrix = compat.matrix()
    for task in PLACES:
        for name, method in plugin.methods().items():
            wanted = (not methods or name in methods) and (not tasks or task in tasks)
            if wanted and method.space and f"task={task}" not in matrix[name]:
                yield task, name


def config_of(task: str, method: str, output_dir: str) -> dict[str, Any]:
    """Return the configuration of a cell."""
    place = PLACES[task]
    rate = min(MOST, FASTER * plugin.methods()[method].learning_rate)
    return {
        "name": f"{task}-{method}".replace("_", "-"),
        "output_dir": output_dir,
        "model": place["model"],
        "task": task,
        "data": {
            "train": place["data"],
            "eval": 0.02,
            "test": 0.1,
            "cutoff_len": place["cutoff_len"],
            "max_samples": 4000,
        },
        "method": method,
        "train": {
            "learning_rate": rate,
            "max_steps": place["steps"],
            "global_batch_size": place["batch"],
            "per_device_train_batch_size": place["batch"],
            "per_device_eval_batch_size": 32,
            "eval_strategy": "no",
        },
    }


def run_cell(task: str, method: str, data_root: str) -> dict[str, Any]:
    """Train one cell in this process."""
    import torch

    from distft.capacity import local_capacity
    from distft.config_file import parse
    from distft.data.manifest import load_manifest
    from distft.data.shards import read_steps
    from distft.data.stats import stats_of
    from distft.plan import make_plan
    from distft.train.job import Order, make_engine, make_job
    from distft.train.loop import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = parse(config_of(task, method, folder))
        root = Path(data_root)
        plan = make_plan(config, stats_of(load_manifest(root)), local_capacity())
        order = Order(
            config=config.dump(),
            plan=plan,
            run_dir=Path(folder) / "run",
            data_root=root,
            config_hash="bench",
        )
        job = make_job(order, 0, read_steps)
        (Path(folder) / "run").mkdir()
        result = list(train(job, make_engine(job)))[-1]
    return {
        "base": result["test"]["base"],
        "tuned": result["test"]["tuned"],
        "trainable_percent": 100 * plan.trainable_params / plan.params,
        "train_s": result["train_s"],
        "peak_memory_bytes": result["peak_memory_bytes"],
        "learning_rate": plan.learning_rate,
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Task -> folder of its prepared data, made when it is first asked for."""
    from distft.config_file import parse
    from distft.data.prepare import prepare
    from distft.launch.session import connected

    folder, found = tmp_path_factory.mktemp("prepared"), {}

    def get(task: str) -> Path:
        if task not in found:
            config = parse(config_of(task, "full", str(folder)))
            with connected(config.cluster):
                found[task] = prepare(config)[0]
        return found[task]

    return get


def test_methods_on_tasks(prepared: Any) -> None:
    done = json.loads(TARGET.read_text()) if TARGET.is_file() else {}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    for task, method in cells():
        key = f"{task}/{method}"
        if key not in done:
            command = [sys.executable, __file__, task, method, str(prepared(task))]
            ran = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert ran.returncode == 0, f"{key}: {ran.stderr[-2000:]}"
            done[key] = json.loads(ran.stdout.splitlines()[-1])
            TARGET.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
        print(f"{key}: {row(task, done[key])}")
    check(done)


def row(task: str, cell: dict[str, Any]) -> str:
    """Return a cell as one line of text."""
    name = f"eval_{SHOWN[task]}"
    return (
        f"{SHOWN[task]} {cell['base'][name]:.3f} -> {cell['tuned'][name]:.3f}, "
        f"{cell['trainable_percent']:.3g} % trained, {cell['train_s']:.0f} s, "
        f"{cell['peak_memory_bytes'] / 2**20:.0f} MiB"
    )


def check(done: dict[str, Any]) -> None:
    """Hold the cells that were run to the margins."""
    for key, cell in done.items():
        task, method = key.split("/")
        base, tuned = cell["base"], cell["tuned"]
        if method not in ("full", "lora", "prefix_tuning"):
            continue
        if task in ("masked_lm", "causal_lm", "sft", "regression", "seq_cls"):
            assert tuned["eval_loss"] < base["eval_loss"], key
        if task == "seq_cls":
            assert tuned["eval_accuracy"] > base["eval_accuracy"], key
            assert tuned["eval_accuracy"] > tuned["eval_majority_accuracy"], key
        if task == "regression":
            assert tuned["eval_r2"] > 0, f"{key}: the mean of the rows does as well"
        if task == "token_cls" and method != "prefix_tuning":
            assert tuned["eval_entity_f1"] > 0.15, key


if __name__ == "__main__":
    print(json.dumps(run_cell(*sys.argv[1:4])))
