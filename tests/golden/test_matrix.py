"""Every method at every ZeRO stage and on every task: two real steps, equal to plain torch.

What a method refuses is refused here too. The rest of the settings goes together in pairs: a
covering array in which each two settings of any two factors meet at least once.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distft import compat, plugin
from distft.errors import PlanError

METHODS, TASKS = plugin.methods(), plugin.tasks()
LABELS = ["O", "B-x", "I-x"]
TOLERANCE = 1e-4
"""Of a loss, relative, between ZeRO and torch after two steps in float32."""
FACTORS: dict[str, list[Any]] = {
    "method": list(METHODS),
    "task": list(TASKS),
    "stage": [0, 1, 2, 3],
    "gradient_checkpointing": [False, True],
    "bf16": [False, True],
    "dtype": ["float32", "bfloat16"],
    "offload": ["none", "cpu"],
    "optim": ["adamw_torch", "sgd"],
}
EXACT = {"gradient_checkpointing": False, "bf16": False, "dtype": "float32", "offload": "none"}

LACKING = {("bitfit", "seq2seq"): "t5 models have none"}
"""What the model of a task lacks for a method, as the message has it."""

Cell = dict[str, Any]


def rows_of(task: plugin.Task, ids: int) -> Iterator[tuple[list[int], list[float]]]:
    """Token ids and labels of the task's kind, drawn at random."""
    draw = random.Random(task.name)
    while True:
        body = [draw.randrange(5, ids) for _ in range(draw.randint(4, 12))]
        labels: list[float]
        if task.labels == "class":
            labels = [draw.randrange(len(LABELS))]
        elif task.labels == "vector":
            width = task.num_outputs or len(LABELS)
            labels = [float(draw.randrange(2)) for _ in range(width)]
        elif task.labels == "sequence":
            labels = list(body[::-1][: draw.randint(2, 6)])
        elif task.classes:
            labels = [draw.randrange(len(LABELS)) for _ in body]
        else:
            labels = list(body)
        yield body, labels


@pytest.fixture(scope="session")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    write_shards: Callable[..., None],
    tiny_bert: Path,
    chat_llama: Path,
    tiny_t5: Path,
) -> dict[str, tuple[Path, Path]]:
    """Task -> a tiny model for it, and prepared data."""
    from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM, LlamaForCausalLM

    def save(model: Any, source: Path, folder: Path) -> None:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)

    biased = tmp_path_factory.mktemp("biased-llama")
    config = AutoConfig.from_pretrained(chat_llama, attention_bias=True)
    save(LlamaForCausalLM(config), chat_llama, biased)
    masked = tmp_path_factory.mktemp("masked-bert")
    save(BertForMaskedLM(AutoConfig.from_pretrained(tiny_bert)), tiny_bert, masked)
    models = {
        "AutoModelForCausalLM": (biased, 200),
        "AutoModelForSeq2SeqLM": (tiny_t5, 12),
        "AutoModelForMaskedLM": (masked, 18),
    }
    found = {}
    for name, task in TASKS.items():
        model, ids = models.get(task.auto_class, (tiny_bert, 18))
        root = tmp_path_factory.mktemp(name)
        write_shards(root, name, LABELS if task.classes else [], rows_of(task, ids))
        found[name] = model, root
    return found


@pytest.fixture
def case(
    tmp_path_factory: pytest.TempPathFactory, places: dict[str, tuple[Path, Path]]
) -> Callable[..., dict[str, Any]]:
    """(a cell, workers) -> case of the gloo group."""

    def make(cell: Cell, workers: int) -> dict[str, Any]:
        model, data_root = places[cell["task"]]
        cluster: dict[str, Any] = {"num_workers": workers}
        if workers > 1:
            cluster |= {"zero_stage": cell["stage"], "offload": cell["offload"]}
        return {
            "run_dir": str(tmp_path_factory.mktemp("run")),
            "data_root": str(data_root),
            "config": {
                "name": "cell",
                "model": {"id": str(model), "dropout": 0.0, "dtype": cell["dtype"]},
                "task": cell["task"],
                "data": {"train": "none"},
                "method": cell["method"],
                "train": {
                    "max_steps": 2,
                    # Large enough that two steps show in bfloat16.
                    "learning_rate": 1e-2,
                    "global_batch_size": 6,
                    "warmup_steps": 0,
                    "logging_steps": 1,
                    "eval_strategy": "no",
                    "gradient_checkpointing": cell["gradient_checkpointing"],
                    "bf16": cell["bf16"],
                    "optim": cell["optim"],
                },
                "cluster": cluster,
            },
        }

    return make


def refused(cell: Cell) -> bool:
    """Whether the matrix, or a plan's own rule, forbids the cell with two workers."""
    chosen = {
        f"task={cell['task']}",
        compat.DEEPSPEED,
        f"cluster.zero_stage={cell['stage']}",
        f"model.dtype={cell['dtype']}",
        f"cluster.offload={cell['offload']}",
        f"train.bf16={str(cell['bf16']).lower()}",
        f"train.gradient_checkpointing={str(cell['gradient_checkpointing']).lower()}",
    }
    if cell["offload"] == "cpu" and cell["stage"] == 0:
        return True
    if cell["dtype"] == "bfloat16" and cell["stage"] == 0:
        return True
    lacking = (cell["method"], cell["task"]) in LACKING
    return lacking or bool(chosen & compat.matrix()[cell["method"]].keys())


def losses(lines: list[dict[str, Any]]) -> list[float]:
    found = [line["loss"] for line in lines if "loss" in line]
    assert len(found) == 2
    return found


def first_task(method: str) -> str:
    return next(task for task in TASKS if f"task={task}" not in compat.matrix()[method])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_stage_equals_torch_or_is_refused(one, two, case, method: str) -> None:
    cell = {**EXACT, "method": method, "task": first_task(method), "optim": "sgd", "stage": 0}
    reference = losses(one.run(case(cell, 1)))
    for stage in range(4):
        asked = {**cell, "stage": stage}
        if refused(asked):
            with pytest.raises(AssertionError, match=PlanError.__name__):
                two.run(case(asked, 2))
            continue
        assert losses(two.run(case(asked, 2))) == pytest.approx(reference, rel=TOLERANCE), stage


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_task_is_trained_or_refused(one, case, method: str) -> None:
    for task in TASKS:
        cell = {**EXACT, "method": method, "task": task, "optim": "adamw_torch", "stage": 0}
        if f"task={task}" in compat.matrix()[method]:
            with pytest.raises(AssertionError, match=PlanError.__name__):
                one.run(case(cell, 1))
        elif (method, task) in LACKING:
            with pytest.raises(AssertionError, match=LACKING[method, task]):
                one.run(case(cell, 1))
        else:
            losses(one.run(case(cell, 1)))


def covering() -> list[Cell]:
    """Cells in which any two values of two factors meet, where some allowed cell holds both."""
    draw = random.Random(0)
    names = list(FACTORS)
    wanted = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
    }
    found: list[Cell] = []
    while wanted:
        (a, x), (b, y) = min(wanted, key=repr)
        drawn = [{**{n: draw.choice(FACTORS[n]) for n in names}, a: x, b: y} for _ in range(300)]
        able = [cell for cell in drawn if not refused(cell)]
        if not able:
            wanted.discard(((a, x), (b, y)))
            continue
        met = [wanted & set(itertools.combinations(cell.items(), 2)) for cell in able]
        best = max(range(len(able)), key=lambda i: len(met[i]))
        found.append(able[best])
        wanted -= met[best]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_settings_go_together_in_pairs(two, case, part: int) -> None:
    cells = covering()
    assert len(cells) >= len(METHODS) * len(TASKS) / 2
    for cell in cells[part::8]:
        try:
            losses(two.run(case(cell, 2)))
        except AssertionError as error:
            raise AssertionError(f"{cell}: {error}") from error


def test_every_method_trains_once(one, case) -> None:
    for method in METHODS:
        cell = {**EXACT, "method": method, "task": first_task(method)}
        losses(one.run(case({**cell, "optim": "adamw_torch", "stage": 0}, 1)))
