"""Every method on every task with real models: quality on held-out rows, and what it costs.

    make bench PYTEST_ARGS="-k methods"
    METHODS=full,lora TASKS=seq_cls make bench PYTEST_ARGS="-k methods"

Each cell is one run of distft's loop in a process of its own with one thread, as many processes at
a time as there are CPUs (AT_ONCE=1 for fewer): a packaged model on packaged data, the same steps
for every method of a task, rates fixed before by one rule (FASTER). Seconds are processor time of
the training steps, which other load hardly changes; memory is the peak above what the process held
before it loaded the model. Cells that build/bench/methods.json holds already are not run again:
stop and start it at will. The margins below were set in advance and are asserted; times are not.

    .venv/bin/python tests/bench/bench_methods.py

prints the cells there are as the README's table.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distft import plugin

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "build" / "bench" / "methods.json"
AT_ONCE = int(os.environ.get("AT_ONCE", os.cpu_count() or 1))

MINILM = {
    "model": "asset:minilm-l6",
    "steps": 60,
    "batch": 16,
    "cutoff_len": 64,
    "max_samples": 4000,
    "test": 0.1,
}
SMOLLM2 = {
    "model": "asset:smollm2-135m-instruct",
    "steps": 20,
    "batch": 4,
    "cutoff_len": 64,
    "max_samples": 1000,
    "test": 0.05,
}
LONGER = {"steps": 600, "batch": 4, "cutoff_len": 48, "faster": 1}
PLACES: dict[str, dict[str, Any]] = {
    "seq_cls": {**MINILM, "data": "asset:vader-amazon"},
    "regression": {**MINILM, "data": "asset:vader-tweets"},
    "token_cls": {**MINILM, "data": "asset:wnut-ner", **LONGER},
    "masked_lm": {**MINILM, "data": "asset:vader-movie-text", "test": 0.03},
    "causal_lm": {**SMOLLM2, "data": "asset:vader-movie-text", "test": 0.005, "steps": 60},
    "sft": {**SMOLLM2, "data": "asset:chatterbot-english"},
}
"""Task -> where it is tried. There is no packaged pre-trained model for seq2seq."""

FASTER = 5
"""Runs of so few steps want higher rates than the methods' defaults, all by the same factor; named
entities take more steps, at the defaults."""
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
    """Yield (task, method) of every cell that is asked for."""
    methods = os.environ.get("METHODS", "").split(",") if os.environ.get("METHODS") else None
    tasks = os.environ.get("TASKS", "").split(",") if os.environ.get("TASKS") else None
    for task in PLACES:
        for name, method in plugin.methods().items():
            wanted = (not methods or name in methods) and (not tasks or task in tasks)
            if wanted and method.space:
                yield task, name


def config_of(task: str, method: str, output_dir: str) -> dict[str, Any]:
    """Return the configuration of a cell."""
    place = PLACES[task]
    rate = min(MOST, place.get("faster", FASTER) * plugin.methods()[method].learning_rate)
    return {
        "name": f"{task}-{method}".replace("_", "-"),
        "output_dir": output_dir,
        "model": place["model"],
        "task": task,
        "data": {
            "train": place["data"],
            "eval": place["test"] / 5,
            "test": place["test"],
            "cutoff_len": place["cutoff_len"],
            "max_samples": place["max_samples"],
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
    import peft  # noqa: F401 - loaded before memory is measured
    import torch
    import transformers  # noqa: F401 - loaded before memory is measured

    from distft.capacity import local_capacity
    from distft.config_file import parse
    from distft.data.manifest import load_manifest
    from distft.data.shards import read_steps
    from distft.data.stats import stats_of
    from distft.errors import ConfigError
    from distft.plan import make_plan
    from distft.train.job import Order, make_engine, make_job
    from distft.train.loop import train
    from distft.train.memory import memory_bytes

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = parse(config_of(task, method, folder))
        root = Path(data_root)
        try:
            plan = make_plan(config, stats_of(load_manifest(root)), local_capacity())
        except ConfigError as error:
            return {"refused": str(error)}
        order = Order(
            config=config.dump(),
            plan=plan,
            run_dir=Path(folder) / "run",
            data_root=root,
            config_hash="bench",
        )
        job = make_job(order, 0, read_steps)
        (Path(folder) / "run").mkdir()
        before_bytes = memory_bytes()
        processor_s = []
        for line in train(job, make_engine(job)):
            if "loss" in line or line.get("step") == 0:
                processor_s.append(time.process_time())
    return {
        "base": line["test"]["base"],
        "tuned": line["test"]["tuned"],
        "trainable_percent": 100 * line["trainable_params"] / plan.params,
        "train_processor_s": processor_s[-1] - processor_s[0],
        "peak_memory_bytes": line["peak_memory_bytes"] - before_bytes,
        "learning_rate": plan.learning_rate,
    }


def prepared(tasks: list[str]) -> dict[str, Path]:
    """Return task -> the folder of its prepared data."""
    from distft.config_file import parse
    from distft.data.prepare import prepare
    from distft.launch.session import connected

    found = {}
    for task in tasks:
        config = parse(config_of(task, "full", str(TARGET.parent)))
        with connected(config.cluster):
            found[task] = prepare(config)[0]
    return found


def run_alone(task: str, method: str, data_root: Path) -> dict[str, Any]:
    """Train one cell in a process of its own, with one thread."""
    ran = subprocess.run(
        [sys.executable, __file__, task, method, str(data_root)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, f"{task}/{method}: {ran.stderr[-2000:]}"
    cell: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return cell


@pytest.mark.timeout(6000)
def test_methods_on_tasks() -> None:
    done = json.loads(TARGET.read_text()) if TARGET.is_file() else {}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    asked = list(cells())
    missing = [(task, method) for task, method in asked if f"{task}/{method}" not in done]
    roots = prepared(list(dict.fromkeys(task for task, _ in missing)))
    print(f"\n{machine()}; {AT_ONCE} processes of 1 thread; {len(missing)} cells to run")
    started = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(lambda one: run_alone(*one, roots[one[0]]), missing)
        for number, (one, cell) in enumerate(zip(missing, results, strict=True), 1):
            done["/".join(one)] = cell
            TARGET.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
            left_s = (time.monotonic() - started) / number * (len(missing) - number)
            print(f"{'/'.join(one)}: {row(one[0], cell)}; {left_s / 60:.0f} min left", flush=True)
    print(table(done))
    check(done)


def machine() -> str:
    """Return where and with what this runs."""
    from importlib.metadata import version

    names = ("torch", "transformers", "peft")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, {platform.machine()}, {versions}"


def table(done: dict[str, Any]) -> str:
    """Return method x task as Markdown: the metric, then trained share, seconds and memory."""
    tasks = [task for task in PLACES if any(key.startswith(f"{task}/") for key in done)]
    heads = [f"{task}, {SHOWN[task].replace('_', ' ')}" for task in tasks]
    full = {task: done.get(f"{task}/full") for task in tasks}
    base = [one and f"{one['base'][f'eval_{SHOWN[t]}']:.3f}" for t, one in full.items()]
    lines = [["method", *heads], ["---"] * (len(tasks) + 1), ["none", *(one or "" for one in base)]]
    for method in plugin.methods():
        found = {task: done.get(f"{task}/{method}") for task in tasks}
        if any(found.values()):
            lines.append([method, *(_cell(task, cell) for task, cell in found.items())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(task: str, cell: dict[str, Any] | None) -> str:
    if cell is None or "refused" in cell:
        return "refused" if cell else "not run"
    percent = cell["trainable_percent"]
    return (
        f"**{cell['tuned'][f'eval_{SHOWN[task]}']:.3f}**"
        f"<br>{percent:{'.0f' if percent >= 10 else '.2g'}} %"
        f"<br>{cell['train_processor_s']:.0f} s<br>{cell['peak_memory_bytes'] / 2**20:.0f} MiB"
    )


def row(task: str, cell: dict[str, Any]) -> str:
    """Return a cell as one line of text."""
    if "refused" in cell:
        return f"refused: {cell['refused']}"
    name = f"eval_{SHOWN[task]}"
    return (
        f"{SHOWN[task]} {cell['base'][name]:.3f} -> {cell['tuned'][name]:.3f}, "
        f"{cell['trainable_percent']:.3g} % trained, {cell['train_processor_s']:.0f} s, "
        f"{cell['peak_memory_bytes'] / 2**20:.0f} MiB"
    )


def check(done: dict[str, Any]) -> None:
    """Hold the cells that were run to the margins."""
    for key, cell in done.items():
        task, method = key.split("/")
        if method not in ("full", "lora", "prefix_tuning"):
            continue
        base, tuned = cell["base"], cell["tuned"]
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
    if len(sys.argv) == 1:
        print(table(json.loads(TARGET.read_text())))
    else:
        print(json.dumps(run_cell(*sys.argv[1:4])))
