"""Padding left in training batches, and what packing saves.

    make bench PYTEST_ARGS="-k padding"

The first part counts, exactly and without a clock: 8,192 lengths of four distributions in steps of
64 samples, cut for one worker by distft (a row each, and packed) and by the Trainer of transformers
(its random sampler and its LengthGroupedSampler, DataCollatorWithPadding, batches of 8).
No sample is truncated. The second part trains a packaged model with LoRA on packaged data with and
without packing, in turns within one run. Raw numbers go to build/bench/padding.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distft.data.pack import Budget, micro_batches

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "build" / "bench" / "padding.json"

ROWS, STEP, BATCH, LONGEST = 8192, 64, 8, 512
THREADS = os.cpu_count() or 1
TURNS, STEPS = 3, 12


def distributions() -> dict[str, np.ndarray]:
    """Return lengths of samples in tokens, from 4 to 512."""
    random = np.random.default_rng(11)
    short, long = random.integers(10, 60, ROWS), random.integers(300, LONGEST, ROWS)
    return {
        "uniform": random.integers(10, LONGEST, ROWS),
        "lognormal": np.clip(random.lognormal(4.3, 0.8, ROWS), 4, LONGEST).astype(int),
        "bimodal": np.where(random.random(ROWS) < 0.8, short, long),
        "long tail": np.clip(random.zipf(1.6, ROWS) * 8, 8, LONGEST),
    }


def ours(lengths: np.ndarray, row_tokens: int | None) -> Iterator[list[int]]:
    """Yield the tokens in each row of every micro-batch."""
    budget = Budget(BATCH * LONGEST, row_tokens, None, overhead_tokens=64)
    order = np.random.default_rng(0).permutation(len(lengths))
    for start in range(0, len(order), STEP):
        ids = order[start : start + STEP]
        for micro in micro_batches(ids.tolist(), lengths[ids], budget, 1)[0]:
            taken = iter(micro.ids)
            yield [sum(int(lengths[next(taken)]) for _ in range(count)) for count in micro.rows]


def theirs(lengths: np.ndarray, folder: Path, *, grouped: bool) -> Iterator[list[int]]:
    """Yield the tokens in each row of every batch of the Trainer's sampler and collator."""
    from torch.utils.data import DataLoader, RandomSampler
    from transformers import AutoTokenizer, DataCollatorWithPadding
    from transformers.trainer_pt_utils import LengthGroupedSampler

    rows = [{"input_ids": [5] * int(length)} for length in lengths]
    generator = torch.Generator().manual_seed(0)
    sampler: Any = (
        LengthGroupedSampler(BATCH, lengths=lengths.tolist(), generator=generator)
        if grouped
        else RandomSampler(rows, generator=generator)
    )
    collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder))
    for batch in DataLoader(rows, BATCH, sampler=sampler, collate_fn=collate):
        yield batch["attention_mask"].sum(1).tolist()


def padding(batches: Iterator[list[int]]) -> dict[str, float]:
    tokens = positions = number = 0
    for rows in batches:
        tokens += sum(rows)
        positions += max(rows) * len(rows)
        number += 1
    assert tokens > 0
    return {"tokens": tokens, "padding": 1 - tokens / positions, "batches": number}


def test_padding_left(asset: Callable[[str], Path]) -> None:
    folder = asset("minilm-l6")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, lengths in distributions().items():
        found[name] = {
            "Trainer": padding(theirs(lengths, folder, grouped=False)),
            "Trainer, group_by_length": padding(theirs(lengths, folder, grouped=True)),
            "distft, a row each": padding(ours(lengths, None)),
            "distft, packed": padding(ours(lengths, LONGEST)),
        }
        assert {way["tokens"] for way in found[name].values()} == {int(lengths.sum())}
    ways = list(next(iter(found.values())))
    print(f"\n| padding left | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for name, by_way in found.items():
        cells = (f"{by_way[way]['padding']:.1%} ({by_way[way]['batches']:,.0f})" for way in ways)
        print(f"| {name} | {' | '.join(cells)} |")
    print("in brackets: forward passes")
    save("left", found)


def trained(packing: bool, data_root: Path, run_dir: Path) -> dict[str, Any]:
    """Return eval.json of a short run with LoRA in this process."""
    from distft.capacity import local_capacity
    from distft.config_file import parse
    from distft.data.manifest import load_manifest
    from distft.data.shards import read_steps
    from distft.data.stats import stats_of
    from distft.plan import make_plan
    from distft.train.job import Order, make_engine, make_job
    from distft.train.loop import train

    config = raw(packing)
    plan = make_plan(parse(config), stats_of(load_manifest(data_root)), local_capacity())
    run_dir.mkdir(parents=True)
    order = Order(
        config=config, plan=plan, run_dir=run_dir, data_root=data_root, config_hash="bench"
    )
    job = make_job(order, 0, read_steps)
    *_, result = train(job, make_engine(job))
    assert result["step"] == STEPS
    return result


def raw(packing: bool, **more: Any) -> dict[str, Any]:
    return {
        "name": "padding",
        "model": "asset:smollm2-135m-instruct",
        "task": "causal_lm",
        "method": "lora",
        "data": {
            "train": "asset:vader-movie-text",
            "eval": 0.001,
            "test": 0.001,
            "cutoff_len": 128,
            "packing": packing,
        },
        "train": {
            "max_steps": STEPS,
            "global_batch_size": 32,
            "eval_strategy": "no",
            "learning_rate": 1e-4,
        },
        **more,
    }


def test_padding_saved_by_packing(tmp_path: Path, asset: Callable[[str], Path]) -> None:
    import ray

    from distft.config_file import parse
    from distft.data.prepare import prepare

    asset("smollm2-135m-instruct")
    asset("vader-movie-text")
    torch.set_num_threads(THREADS)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    root, _ = prepare(parse(raw(True, output_dir=str(tmp_path))))
    ray.shutdown()
    seen: dict[str, list[dict[str, Any]]] = {"packed": [], "a row each": []}
    for turn in range(TURNS):
        for name, runs in seen.items():
            result = trained(name == "packed", root, tmp_path / f"{name}-{turn}")
            runs.append({key: result[key] for key in ("tokens_per_s", "padding", "train_s")})
            print(f"{name}: {runs[-1]}")
    rates = {name: statistics.median(r["tokens_per_s"] for r in seen[name]) for name in seen}
    print(
        f"\n{THREADS} threads, median of {TURNS}: packed {rates['packed']:,.0f} tokens/s, a row "
        f"each {rates['a row each']:,.0f}: {rates['packed'] / rates['a row each']:.2f}x; padding "
        f"{seen['packed'][0]['padding']:.1%} and {seen['a row each'][0]['padding']:.1%}"
    )
    save("trained", {"threads": THREADS, **seen})


def save(part: str, found: Any) -> None:
    kept = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.is_file() else {}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    whole = {**kept, part: found, "versions": versions}
    TARGET.write_text(json.dumps(whole, indent=1), encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
