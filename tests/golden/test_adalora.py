"""AdaLoRA's ranks fall to the budget, and an interrupted run gives what an unbroken one gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from distft.train import checkpoint

STEPS, LAYERS, FIRST, TARGET = 10, 14, 5, 3
LAST_ALLOCATION = 8
"""The step (counted from 1) after which tfinal begins: 30 % of the run."""


@pytest.fixture(scope="module")
def make_case(tiny_llama: Path, progressions: Path, tmp_path_factory: Any) -> Any:
    """A step to stop at, and the weight of the penalty -> a case."""

    def make(stop_at: int | None = None, orth_reg_weight: float = 0.5) -> dict[str, Any]:
        method = {"name": "adalora", "init_r": FIRST, "target_r": TARGET, "tinit": 0.2}
        return {
            "run_dir": str(tmp_path_factory.mktemp("run")),
            "data_root": str(progressions),
            "stop_at": stop_at,
            "config": {
                "name": "golden",
                "model": {"id": str(tiny_llama)},
                "task": "sft",
                "data": {"train": "none"},
                "method": method | {"tfinal": 0.3, "orth_reg_weight": orth_reg_weight},
                "train": {
                    "global_batch_size": 8,
                    "max_steps": STEPS,
                    "warmup_steps": 1,
                    "logging_steps": 1,
                    "eval_strategy": "no",
                    "save_steps": 1,
                    "save_total_limit": STEPS,
                    "learning_rate": 2e-2,
                },
            },
        }

    return make


@pytest.fixture(scope="module")
def whole(one, make_case) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run without a break: its case and its lines."""
    case = make_case()
    return case, one.run(case)


def weights(case: dict[str, Any], step: int) -> dict[str, torch.Tensor]:
    found = {}
    folder = checkpoint.step_dir(Path(case["run_dir"]), step)
    for path in (folder / "state").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    return found


def ranks(case: dict[str, Any], step: int) -> int:
    tensors = weights(case, step).items()
    return sum(int((t != 0).sum()) for name, t in tensors if name.endswith("lora_E.default|param"))


def test_ranks_fall_to_the_budget_and_stay_there(whole) -> None:
    case, lines = whole
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    left = [ranks(case, step) for step in range(1, STEPS + 1)]
    assert left[1] == FIRST * LAYERS, "tinit keeps every rank; the first step's rate is 0"
    assert left[1] > left[LAST_ALLOCATION - 3] > left[-1]
    assert left[LAST_ALLOCATION - 1 :] == [TARGET * LAYERS] * 3, "tfinal trains what is left"


def test_the_penalty_counts(one, make_case, whole) -> None:
    case, lines = whole
    without = make_case(orth_reg_weight=0.0)
    first = next(line["loss"] for line in one.run(without) if "loss" in line)
    assert first == next(line["loss"] for line in lines if "loss" in line), (
        "the loss shown is plain"
    )

    def distance(case: dict[str, Any]) -> float:
        rows = [t for n, t in weights(case, STEPS).items() if n.endswith("lora_A.default|param")]
        return sum(float((row @ row.T - torch.eye(len(row))).norm()) for row in rows)

    assert distance(case) < 0.9 * distance(without)


@pytest.mark.parametrize("stop_at", [5, LAST_ALLOCATION, LAST_ALLOCATION + 1])
def test_interrupted_equals_uninterrupted(one, make_case, whole, stop_at: int) -> None:
    """Among the allocations, just before the last one, and after it."""
    whole_case, lines = whole
    broken = make_case(stop_at)
    one.run(broken)
    resumed = one.run(broken | {"stop_at": None})
    notes = [line["note"] for line in resumed if "note" in line]
    assert notes[0] == f"continued from step {stop_at - 1}"
    tail = [line["loss"] for line in lines if "loss" in line][stop_at - 1 :]
    assert [line["loss"] for line in resumed if "loss" in line] == tail
    mine, theirs = weights(broken, STEPS), weights(whole_case, STEPS)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
