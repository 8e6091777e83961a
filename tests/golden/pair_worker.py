"""One rank of a long-lived gloo group that runs training cases; no Ray.

Started as `python pair_worker.py RANK WORLD_SIZE STORE_FILE`; reads one JSON case per line from
stdin, writes one JSON answer per line to the file descriptor given by DISTFT_ANSWER_FD.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    rank, world_size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "DS_ACCELERATOR": "cpu",
    }
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
    )
    with os.fdopen(int(os.environ["DISTFT_ANSWER_FD"]), "w") as answers:
        for line in sys.stdin:
            try:
                answer = {"lines": run_case(json.loads(line), rank)}
            except Exception:  # noqa: BLE001 - whatever it is goes to the test
                answer = {"error": traceback.format_exc()}
            gc.collect()
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def run_case(case: dict[str, Any], rank: int) -> list[dict[str, Any]]:
    """Run the loop, or stop it where an interruption is to be simulated."""
    from distft import plugin
    from distft.capacity import local_capacity
    from distft.config_file import parse
    from distft.data.manifest import load_manifest
    from distft.data.order import plan_steps
    from distft.data.shards import SplitReader, read_steps
    from distft.data.stats import stats_of
    from distft.plan import make_plan
    from distft.train.deepspeed_engine import DeepSpeedEngine
    from distft.train.job import Job
    from distft.train.loop import train
    from distft.train.model import builder
    from distft.train.torch_engine import TorchEngine

    config = parse(case["config"])
    root = Path(case["data_root"])
    manifest = load_manifest(root)
    plan = make_plan(config, stats_of(manifest), local_capacity())
    readers = {split: SplitReader(root, manifest, split) for split in ("train", "eval", "test")}

    def steps(start: int) -> Any:
        plans = plan_steps(
            seed=config.train.seed,
            row_groups=readers["train"].row_groups,
            lengths=readers["train"].lengths,
            global_batch_size=plan.global_batch_size,
            micro_batch_size=plan.per_device_train_batch_size,
            accumulation=plan.gradient_accumulation_steps,
            world_size=plan.world_size,
            rank=rank,
            start_step=start,
            total_steps=plan.total_steps,
        )
        return read_steps(readers["train"], plans)

    run_dir = Path(case["run_dir"])
    job = Job(
        config=config,
        plan=plan,
        task=plugin.tasks()[config.task.name],
        labels=list(manifest.labels),
        run_dir=run_dir,
        config_hash=case.get("config_hash", "golden"),
        pad_id=0,
        readers=readers,
        steps=steps,
    )
    build = builder(config, job.labels)
    engine: Any = (
        TorchEngine(build, config.train, plan)
        if plan.engine == "torch" and not case.get("deepspeed")
        else DeepSpeedEngine(build, config, plan)
    )
    lines = []
    for line in train(job, engine):
        lines.append(line)
        if "loss" in line and line["step"] == case.get("stop_at"):
            break
    return lines


if __name__ == "__main__":
    main()
