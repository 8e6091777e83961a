"""How long training waits for its samples, and what it gets done, beside `datasets` streaming.

    make bench PYTEST_ARGS="-k stream"
    PLACES=sft REPEATS=5 make bench PYTEST_ARGS="-k stream"

Both sides train the same LoRA run (packaged model and data, one engine, the same prepared token
ids, step and micro-batch sizes) in a process of their own, in turns, with THREADS threads each
(default: all CPUs). distft runs its own loop over `distft.data.stream` with a local Ray; the other
reads the same shards with `load_dataset("parquet", streaming=True)`, a shuffle buffer and a torch
DataLoader whose collator is Hugging Face's default. The first WARM_UP steps are left out of all but
`first_wait_s`, in which Ray Data or the shuffle buffer starts. Wait is the time the loop stood
still for the next step's samples; tokens are real ones, not padding. Runs that
build/bench/stream.json holds already are not run again. Nothing is asserted about time.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "build" / "bench" / "stream.json"
METHODS = runpy.run_path(str(Path(__file__).with_name("bench_methods.py")))
THREADS = int(os.environ.get("THREADS", os.cpu_count() or 1))
REPEATS = int(os.environ.get("REPEATS", "3"))
PLACES = {
    "seq_cls": {"steps": 30, "global_batch_size": 16, "per_device_train_batch_size": 8},
    "sft": {"steps": 15, "global_batch_size": 8, "per_device_train_batch_size": 2},
}
"""Tasks of bench_methods: a model of 23M parameters whose steps are short, and one of 135M."""
WARM_UP = 5
SHUFFLE_BUFFER = 1000


def config_of(task: str, output_dir: str) -> dict[str, Any]:
    config: dict[str, Any] = METHODS["config_of"](task, "lora", output_dir)
    sizes = dict(PLACES[task])
    config["train"] |= {"max_steps": sizes.pop("steps"), "logging_steps": 1, **sizes}
    return config


def run_side(side: str, task: str, data_root: str) -> dict[str, Any]:
    """Train in this process; return what it measured."""
    import torch

    from distft.capacity import local_capacity
    from distft.config_file import parse
    from distft.data.manifest import load_manifest
    from distft.data.stats import stats_of
    from distft.data.stream import stream
    from distft.launch.session import connected
    from distft.plan import make_plan
    from distft.train.job import Order, make_engine, make_job

    torch.set_num_threads(THREADS)
    root = Path(data_root)
    with tempfile.TemporaryDirectory() as folder:
        config = parse(config_of(task, folder))
        plan = make_plan(config, stats_of(load_manifest(root)), local_capacity())
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        order = Order(
            config=config.dump(), plan=plan, run_dir=run_dir, data_root=root, config_hash="bench"
        )
        job = make_job(order, 0, lambda _, plans: stream(root, "train", plans))
        if side == "distft":
            with connected(config.cluster):
                return told(our_steps(job, make_engine(job)))
        return told(their_steps(job, make_engine(job), root))


Step = tuple[float, float, int]
"""When it ended, how long it waited for its samples, tokens."""


def our_steps(job: Any, engine: Any) -> Iterator[Step]:
    from distft.train.loop import train

    tokens = 0
    for line in train(job, engine):
        if "loss" in line:
            mine, tokens = line["tokens"] - tokens, line["tokens"]
            trained_s, share = mine / line["tokens_per_s"], line["data_wait"]
            yield time.perf_counter(), trained_s * share / (1 - share), mine


def their_steps(job: Any, engine: Any, root: Path) -> Iterator[Step]:
    import datasets
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    from distft import hf

    tokenizer, classes = hf.load_tokenizer(job.config.model), job.task.labels == "class"
    collator = DataCollatorWithPadding if classes else DataCollatorForSeq2Seq

    def features(row: dict[str, Any]) -> dict[str, Any]:
        labels = row["labels"]
        return {"input_ids": row["input_ids"]} | (
            {"label": labels[0]} if classes else {"labels": labels}
        )

    files = sorted(map(str, root.glob("train-*.parquet")))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    names = ["input_ids", "labels"]
    rows = rows.select_columns(names).shuffle(42, buffer_size=SHUFFLE_BUFFER)
    rows = rows.map(features, remove_columns=names if classes else None)
    size = job.plan.per_device_train_batch_size
    batches = iter(DataLoader(rows, batch_size=size, collate_fn=collator(tokenizer)))
    for step in range(job.plan.total_steps):
        asked_s = time.perf_counter()
        micro_batches = [next(batches) for _ in range(job.plan.gradient_accumulation_steps)]
        waited_s = time.perf_counter() - asked_s
        targets = sum(job.task.num_targets(row) for b in micro_batches for row in rows_of(b))
        tokens = sum(int(b["attention_mask"].sum()) for b in micro_batches)
        for number, batch in enumerate(micro_batches, start=1):
            loss = job.task.loss(engine.forward(batch), batch["labels"], job.loss_settings)
            engine.backward(loss, targets, last=number == len(micro_batches))
            loss.item()
        engine.step(job.plan.learning_rate, step)
        yield time.perf_counter(), waited_s, tokens


def rows_of(batch: Any) -> list[list[int]]:
    return [row if isinstance(row, list) else [row] for row in batch["labels"].tolist()]


def told(steps: Iterator[Step]) -> dict[str, Any]:
    ends, waits, tokens = zip(*steps, strict=True)
    seconds = ends[-1] - ends[WARM_UP - 1]
    return {
        "first_wait_s": waits[0],
        "wait_ms": 1000 * statistics.mean(waits[WARM_UP:]),
        "longest_wait_ms": 1000 * max(waits[WARM_UP:]),
        "step_ms": 1000 * seconds / (len(ends) - WARM_UP),
        "wait_percent": 100 * sum(waits[WARM_UP:]) / seconds,
        "tokens_per_s": sum(tokens[WARM_UP:]) / seconds,
        "load": os.getloadavg()[0],
    }


def run_alone(side: str, task: str, data_root: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    ran = subprocess.run(
        [sys.executable, __file__, side, task, str(data_root)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
    )
    assert ran.returncode == 0, f"{side}/{task}: {ran.stderr[-2000:]}"
    done: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return done


@pytest.mark.timeout(6000)
def test_stream_beside_datasets() -> None:
    tasks = os.environ.get("PLACES", ",".join(PLACES)).split(",")
    done = json.loads(TARGET.read_text()) if TARGET.is_file() else {}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    order = [
        (f"{task}/{THREADS} threads/{side}", number, side, task)
        for task in tasks
        for number in range(REPEATS)
        for side in ("distft", "datasets")
    ]
    missing = [one for one in order if len(done.get(one[0], [])) <= one[1]]
    roots = METHODS["prepared"](list(dict.fromkeys(task for *_, task in missing)))
    print(f"\n{METHODS['machine']()}; {THREADS} threads a process; {len(missing)} runs to do")
    for key, _, side, task in missing:
        run = run_alone(side, task, roots[task])
        done.setdefault(key, []).append(run)
        TARGET.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
        print(f"{key}: " + ", ".join(f"{name} {value:.4g}" for name, value in run.items()))
    for key in dict.fromkeys(key for key, *_ in order):
        median = {
            name: statistics.median(run[name] for run in done[key][:REPEATS])
            for name in ("wait_percent", "wait_ms", "longest_wait_ms", "step_ms", "tokens_per_s")
        }
        print(f"{key}: " + ", ".join(f"{k} {v:.4g}" for k, v in median.items()) + " (medians)")


if __name__ == "__main__":
    print(json.dumps(run_side(*sys.argv[1:4])))
