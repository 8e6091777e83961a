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
    from distft.capacity import local_capacity
    from distft.config_file import parse
    from distft.data.manifest import load_manifest
    from distft.data.shards import read_steps
    from distft.data.stats import stats_of
    from distft.plan import make_plan
    from distft.train.job import Order, make_engine, make_job
    from distft.train.loop import train

    root = Path(case["data_root"])
    plan = make_plan(parse(case["config"]), stats_of(load_manifest(root)), local_capacity())
    if case.get("deepspeed"):
        plan = plan.model_copy(update={"engine": "deepspeed"})
    order = Order(
        config=case["config"],
        plan=plan,
        run_dir=Path(case["run_dir"]),
        data_root=root,
        config_hash=case.get("config_hash", "golden"),
    )
    if "swap_group" in case:
        from distft.train import deepspeed_engine

        deepspeed_engine.SWAP_GROUP = case["swap_group"]
    job = make_job(order, rank, read_steps)
    lines = []
    for line in train(job, make_engine(job)):
        lines.append(line)
        if "loss" in line and line["step"] == case.get("stop_at"):
            break
    return lines


if __name__ == "__main__":
    main()
