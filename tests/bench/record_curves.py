"""Records learning curves of real fine-tuning runs for `distft tune --replay`.

    python tests/bench/record_curves.py [FILE]

MiniLM on Amazon snippets, configurations drawn at random from the methods' own spaces, each trained
by distft's loop in this process with one thread. About a minute a run. A run that the file holds
already is not made again, so the script may be stopped and started at will.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUNS = 36
SEED = 0
STEPS = 60
BATCH = 16
REPORT_STEPS = 3
CURVES = Path(__file__).parent / "curves" / "minilm_vader.json"


def configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, overrides) of every run; methods take turns, rates cover their range evenly."""
    from distft import plugin

    draw = random.Random(SEED)
    methods = list(plugin.methods().values())
    each = math.ceil(RUNS / len(methods))
    strata = {method.name: draw.sample(range(each), each) for method in methods}
    for number in range(RUNS):
        method = methods[number % len(methods)]
        chosen: dict[str, Any] = {"method.name": method.name}
        for key, values in method.space.items():
            if key == "train.learning_rate":
                share = (strata[method.name][number // len(methods)] + draw.random()) / each
                rate = values.low * (values.high / values.low) ** share
                chosen[key] = float(f"{rate:.3g}")
            else:
                chosen[key] = draw.choice(values)
        parts = [f"{key.split('.')[1]}_{value}" for key, value in chosen.items()]
        yield "/".join([method.name, "-".join(parts[1:])]), chosen


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a config from dotted keys."""
    config: dict[str, Any] = {
        "name": "run",
        "model": "asset:minilm-l6",
        "task": "seq_cls",
        "data": {
            "train": "asset:vader-amazon",
            "eval": 0.02,
            "test": 0.3,
            "cutoff_len": 64,
        },
        "method": {},
        "train": {
            "max_steps": STEPS,
            "global_batch_size": BATCH,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 32,
            "logging_steps": 1,
            "eval_strategy": "no",
        },
    }
    for key, value in flat.items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def record(flat: dict[str, Any], folder: Path, data_root: Path) -> dict[str, Any]:
    """Train one configuration and return its entry of the file."""
    from distft.capacity import local_capacity
    from distft.config_file import parse
    from distft.data.manifest import load_manifest
    from distft.data.shards import read_steps
    from distft.data.stats import stats_of
    from distft.plan import make_plan
    from distft.train.job import Order, make_engine, make_job
    from distft.train.loop import train

    config = parse(nested(flat))
    plan = make_plan(config, stats_of(load_manifest(data_root)), local_capacity())
    order = Order(
        config=config.dump(), plan=plan, run_dir=folder, data_root=data_root, config_hash="curves"
    )
    job = make_job(order, 0, read_steps)
    lines = list(train(job, make_engine(job)))
    losses = [line["loss"] for line in lines if "loss" in line]
    result = lines[-1]
    return {
        "method": config.method.name,
        "r": flat.get("method.r"),
        "trainable_layers": flat.get("method.trainable_layers"),
        "lr": flat["train.learning_rate"],
        "params": plan.trainable_params,
        "train_loss": {
            str(end): round(sum(losses[end - REPORT_STEPS : end]) / REPORT_STEPS, 5)
            for end in range(REPORT_STEPS, STEPS + 1, REPORT_STEPS)
        },
        "test": result["test"]["tuned"]["eval_accuracy"],
        "test_loss": round(result["test"]["tuned"]["eval_loss"], 5),
        "train_time": round(result["train_s"], 2),
    }


def prepared(output_dir: Path) -> tuple[Path, int]:
    """Return where the prepared data are and how many test rows they have."""
    from distft.config_file import parse
    from distft.data.prepare import prepare
    from distft.launch.session import connected

    config = parse(nested({"method.name": "full"}) | {"output_dir": str(output_dir)})
    with connected(config.cluster):
        root, manifest = prepare(config)
    return root, manifest.splits["test"].rows


def main(target: Path) -> None:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distft-curves-") as scratch:
        data_root, test_rows = prepared(Path(scratch))
        document: dict[str, Any] = {
            "source": "recorded with tests/bench/record_curves.py; VADER Amazon snippets (MIT)",
            "base": "asset:minilm-l6",
            "steps": STEPS,
            "batch": BATCH,
            "test_n": test_rows,
            "runs": {},
        }
        if target.is_file():
            document["runs"] = json.loads(target.read_text(encoding="utf-8"))["runs"]
        waiting = [each for each in configurations() if each[0] not in document["runs"]]
        started = time.monotonic()
        for done, (name, flat) in enumerate(waiting, 1):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                entry = record(flat, Path(folder), data_root)
            document["runs"][name] = entry
            target.parent.mkdir(parents=True, exist_ok=True)
            whole = target.with_suffix(".partial")
            whole.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            whole.replace(target)
            left_s = (time.monotonic() - started) / done * (len(waiting) - done)
            print(
                f"{done} of {len(waiting)}: {name}: loss {entry['train_loss'][str(STEPS)]:.3f}, "
                f"accuracy {entry['test']:.3f}; {left_s / 60:.0f} min left",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else CURVES)
