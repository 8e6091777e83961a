"""Every number a plan derives, and every refusal with what would work instead."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.batch_sizes import batch_sizes
from distft.capacity import GIB, Capacity, shape_capacity, size_text
from distft.config_file import parse
from distft.config_sections import ShapeConfig
from distft.data.stats import DataStats
from distft.errors import ConfigError, PlanError
from distft.plan import Plan, make_plan

PARAMS = 2 * 258 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
"""Of the tiny Llama: embeddings and output layer, two blocks, the last norm."""

LORA = 8 * 2 * (2 * 64 + 2 * (32 + 16) + 3 * (32 + 48))
"""Of an update of rank 8 beside each linear layer of its blocks."""


def config_with(sections: dict[str, Any], model: str = "m") -> Any:
    raw: dict[str, Any] = {
        "name": "p",
        "model": {"id": model},
        "task": "sft",
        "data": {"train": "f", "format": "messages"},
        "method": "full",
    }
    for dotted, value in sections.items():
        section, _, key = dotted.partition(".")
        if key:
            raw.setdefault(section, {})[key] = value
        else:
            raw[section] = value
    return parse(raw)


@pytest.fixture
def plan(chat_llama: Path) -> Any:
    """Settings by dotted key; rows, capacity -> plan."""

    def make(
        settings: dict[str, Any] | None = None,
        *,
        rows: int = 100,
        mixed: Sequence[int] = (),
        **capacity: Any,
    ) -> Plan:
        counts = {"train": rows, "eval": 9, "test": 8}
        stats = DataStats(counts, 20.0, 50, [], exact=True, mixed_rows=mixed)
        has = {"nodes": 1, "cpus": 4, "memory_bytes": GIB, "gpus": 0, "gpu_memory_bytes": 0}
        return make_plan(
            config_with(settings or {}, str(chat_llama)),
            stats,
            Capacity(**{**has, **capacity}, source="a test"),
        )

    return make


def test_smoothing_is_refused_where_there_are_no_classes(plan: Any) -> None:
    smooth = {"train.label_smoothing_factor": 0.1}
    assert plan(smooth).total_steps > 0
    with pytest.raises(ConfigError, match="task regression has no classes over which a label"):
        plan({**smooth, "task": "regression", "data": {"train": "f", "format": "scored"}})


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("world", [1, 3])
def test_model_states_are_those_of_the_zero_paper(
    plan: Any, world: int, dtype: str, optim: str
) -> None:
    """Section 3 of arXiv 1910.02054: 2 P + 2 P + 12 P in mixed precision, less by stage."""
    made = plan(
        {
            "cluster.num_workers": world,
            "cluster.zero_stage": 2,
            "model.dtype": dtype,
            "train.optim": optim,
        }
    )
    assert made.params == made.trainable_params == PARAMS
    width = {"float32": 4, "bfloat16": 2}[dtype]
    moments = {"adamw_torch": 8, "sgd": 4}[optim]
    master_at_0 = 0 if dtype == "float32" else 4
    whole, states = width * PARAMS, (moments + 4) * PARAMS
    by_hand = {
        "0": 2 * whole + (moments + master_at_0) * PARAMS,
        "1": 2 * whole + states // world,
        "2": whole + whole // world + states // world,
        "3": 2 * (whole // world) + states // world,
    }
    assert made.memory.by_stage == by_hand
    assert made.memory.total_bytes == by_hand["2"]
    memory = made.memory
    assert memory.weights_bytes == whole
    assert memory.gradients_bytes == whole // world
    assert memory.optimizer_bytes == states // world


def test_an_adapter_comes_on_top_of_its_base(plan: Any) -> None:
    made = plan({"method": "lora"})
    assert (made.params, made.trainable_params) == (PARAMS, LORA)
    assert made.memory.total_bytes == 4 * (PARAMS + LORA) + 4 * LORA + 8 * LORA
    assert made.learning_rate == 3e-4
    assert made.reasons["train.learning_rate"] == "0.0003 is the default of lora"


def test_sgd_without_momentum_keeps_no_state(plan: Any) -> None:
    made = plan({"train.optim": "sgd", "train.sgd_momentum": 0.0})
    assert made.memory.optimizer_bytes == 0


def test_available_memory_is_shared_by_the_workers_of_a_node(plan: Any) -> None:
    assert plan().memory.available_bytes == int(0.9 * GIB)
    two = plan({"cluster.num_workers": 3}, nodes=2)
    assert two.memory.available_bytes == int(0.9 * GIB / 2)
    assert two.threads_per_worker == 2
    card = plan({"cluster.num_workers": 3}, gpus=4, gpu_memory_bytes=2 * GIB)
    assert card.memory.available_bytes == int(0.9 * 2 * GIB)
    assert (card.device, plan({"cluster.gpus_per_worker": 0}, gpus=4).device) == ("cuda", "cpu")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_lowest_stage_that_fits_is_taken(plan: Any, stage: int) -> None:
    by_stage = plan({"cluster.num_workers": 4}).memory.by_stage
    sizes = [by_stage[str(s)] for s in range(4)]
    # Float32 states: stage 1 adds master weights, which a world of 4 more than makes up for.
    assert sizes == sorted(sizes, reverse=True)
    room = math.ceil(sizes[stage] / 0.9) + 1
    made = plan({"cluster.num_workers": 4}, nodes=4, memory_bytes=room)
    assert made.zero_stage == stage
    assert "lowest stage that fits 4 worker(s)" in made.reasons["cluster.zero_stage"]


def test_an_asked_stage_that_does_not_fit_names_one_that_does(plan: Any) -> None:
    room = plan({"cluster.num_workers": 4}).memory.by_stage["2"] / 0.9 + 1
    with pytest.raises(PlanError, match=r"The model states need .* of a test is usable") as caught:
        plan(
            {"cluster.num_workers": 4, "cluster.zero_stage": 1}, nodes=4, memory_bytes=int(room) + 1
        )
    assert caught.value.exit_code == 3
    assert caught.value.hint.startswith("cluster.zero_stage=2 fits")


def test_when_nothing_fits_the_proposed_workers_do(plan: Any) -> None:
    with pytest.raises(PlanError) as caught:
        plan({"cluster.num_workers": 2}, memory_bytes=200_000)
    assert "so may method=lora" in caught.value.hint
    found = re.search(r"cluster\.num_workers=(\d+) with zero_stage=3 would fit", caught.value.hint)
    assert found
    workers = int(found[1])
    nodes = math.ceil(workers / 2)
    made = plan({"cluster.num_workers": workers}, nodes=nodes, memory_bytes=200_000)
    assert made.zero_stage == 3
    with pytest.raises(PlanError):
        plan({"cluster.num_workers": workers - 2}, nodes=nodes - 1, memory_bytes=200_000)


def test_buffers_are_those_of_deepspeed(plan: Any) -> None:
    card: dict[str, Any] = {"gpus": 2, "gpu_memory_bytes": 8 * GIB}
    zero3 = plan({"cluster.num_workers": 2, "cluster.zero_stage": 3}, **card).memory
    # A bucket of 5e8 numbers and all weights gathered; a float32 gradient and a square root.
    assert zero3.buffers_bytes == 4 * 500_000_000 + 4 * PARAMS
    assert zero3.step_bytes == 8 * PARAMS // 2
    assert zero3.activations_bytes > 0
    assert zero3.peak_bytes == zero3.total_bytes + zero3.activations_bytes + zero3.buffers_bytes
    assert plan(**card).memory.buffers_bytes == 0
    assert plan().memory.activations_bytes is None


def test_more_workers_than_cards_are_refused(plan: Any) -> None:
    with pytest.raises(PlanError, match=r"num_workers=5 needs as many graphics cards.* has 4") as c:
        plan({"cluster.num_workers": 5}, nodes=2, gpus=2, gpu_memory_bytes=GIB)
    assert "cluster.num_workers=4" in c.value.hint


def test_bfloat16_weights_need_masters(plan: Any) -> None:
    with pytest.raises(PlanError, match="needs float32 master weights") as caught:
        plan({"model.dtype": "bfloat16", "cluster.zero_stage": 0})
    assert "cluster.zero_stage=1" in caught.value.hint
    made = plan({"model.dtype": "bfloat16"})
    assert (made.zero_stage, made.engine) == (1, "deepspeed")
    several = {"model.dtype": "bfloat16", "method": "lora", "cluster.num_workers": 2}
    assert plan(several).zero_stage == 1
    with pytest.raises(PlanError, match="float32 master"):
        plan({**several, "cluster.zero_stage": 0})
    adapter = plan({"model.dtype": "bfloat16", "method": "lora"})
    assert (adapter.zero_stage, adapter.engine) == (0, "torch")


def test_offload_needs_a_stage(plan: Any) -> None:
    with pytest.raises(PlanError, match=r"zero_stage is 0") as caught:
        plan({"cluster.offload": "cpu", "cluster.zero_stage": 0})
    assert "cluster.zero_stage=2" in caught.value.hint
    assert plan({"cluster.offload": "cpu"}).zero_stage == 1
    card = plan({"cluster.offload": "cpu"}, gpus=1, gpu_memory_bytes=8 * GIB).memory
    assert (card.optimizer_bytes, card.step_bytes) == (0, 0)
    # Master weights, two moments and the gradients, in float32.
    assert card.host_bytes == 16 * PARAMS
    with pytest.raises(PlanError, match=r"offload=cpu needs .* of a node's main memory") as caught:
        plan({"cluster.offload": "cpu"}, gpus=1, gpu_memory_bytes=8 * GIB, memory_bytes=400_000)
    assert "2 nodes like these would hold it" in caught.value.hint


def test_a_disk_takes_the_states_of_zero_3(plan: Any) -> None:
    disk = {"cluster.offload": "nvme", "cluster.nvme_path": "/mnt/nvme"}
    with pytest.raises(PlanError, match="needs ZeRO 3; zero_stage is 2") as caught:
        plan({**disk, "cluster.zero_stage": 2})
    assert "cluster.zero_stage=3" in caught.value.hint
    with pytest.raises(PlanError, match="does not go with method qlora") as caught:
        plan({**disk, "method": "qlora"})
    assert "cluster.offload=cpu" in caught.value.hint
    made = plan({**disk, "cluster.num_workers": 2})
    assert (made.zero_stage, made.engine, made.offload) == (3, "deepspeed", "nvme")
    assert "the only stage" in made.reasons["cluster.zero_stage"]
    # On a CPU the states leave main memory, but for weights and gradients.
    assert (made.memory.optimizer_bytes, made.memory.gradients_bytes) == (0, 4 * PARAMS // 2)
    assert made.memory.disk_bytes == 16 * PARAMS
    card = plan(disk, gpus=1, gpu_memory_bytes=8 * GIB).memory
    assert (card.optimizer_bytes, card.gradients_bytes) == (0, 0)
    assert (card.step_bytes, card.disk_bytes) == (4 * PARAMS, 16 * PARAMS)
    # Gradients as they come, and four buffers as large as the only group.
    assert card.host_bytes == 4 * PARAMS + 4 * 4 * PARAMS
    plain = plan({**disk, "train.optim": "sgd"}).memory
    assert plain.disk_bytes == 12 * PARAMS


@pytest.mark.parametrize(
    ("world", "stage", "engine"),
    [(1, 0, "torch"), (1, 1, "deepspeed"), (2, 0, "deepspeed")],
)
def test_engine(plan: Any, world: int, stage: int, engine: str) -> None:
    made = plan({"cluster.num_workers": world, "cluster.zero_stage": stage})
    assert made.engine == engine


@pytest.mark.parametrize(
    ("given_settings", "world", "expected"),
    [
        ({}, 1, (16, 8, 2)),
        ({}, 2, (16, 8, 1)),
        ({}, 3, (16, 6, 1)),
        ({}, 20, (20, 1, 1)),
        ({"global_batch_size": 64}, 2, (64, 8, 4)),
        ({"per_device_train_batch_size": 3}, 2, (6, 3, 1)),
        ({"gradient_accumulation_steps": 4}, 2, (64, 8, 4)),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 5}, 3, (30, 2, 5)),
        ({"global_batch_size": 10, "per_device_train_batch_size": 4}, 1, (10, 4, 3)),
        ({"global_batch_size": 32, "gradient_accumulation_steps": 2}, 1, (32, 16, 2)),
    ],
)
def test_batches(
    given_settings: dict[str, int], world: int, expected: tuple[int, int, int]
) -> None:
    settings = {f"train.{key}": value for key, value in given_settings.items()}
    reasons: dict[str, str] = {}
    config = config_with({**settings, "cluster.num_workers": world})
    assert batch_sizes(config, reasons) == expected
    keys = ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    assert set(reasons) == {f"train.{key}" for key in keys if key not in given_settings}


@settings(max_examples=200, deadline=None)
@given(
    world=st.integers(1, 9),
    whole=st.none() | st.integers(1, 200),
    micro=st.none() | st.integers(1, 20),
    accumulation=st.none() | st.integers(1, 9),
)
def test_batches_hold_a_step_with_no_idle_round_or_are_refused(
    world: int, whole: int | None, micro: int | None, accumulation: int | None
) -> None:
    asked = {
        "global_batch_size": whole,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
    }
    given_settings = {f"train.{k}": v for k, v in asked.items() if v is not None}
    config = config_with({**given_settings, "cluster.num_workers": world})
    refused = ""
    try:
        got = batch_sizes(config)
    except ConfigError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("train.global_batch_size")
        assert whole is not None
        assert whole < world or accumulation is not None or micro is not None
        return
    assert all(value in (None, found) for value, found in zip(asked.values(), got, strict=True))
    assert got[1] * world * (got[2] - 1) < got[0] <= got[1] * world * got[2]


def test_contradicting_batches_are_refused() -> None:
    train = {
        "train.global_batch_size": 16,
        "train.per_device_train_batch_size": 3,
        "train.gradient_accumulation_steps": 2,
    }
    with pytest.raises(ConfigError, match=r"=16 does not fit 1 workers x 2 .* x 3 .* = 6") as c:
        batch_sizes(config_with(train))
    assert "Leave one of the three out" in c.value.hint
    with pytest.raises(ConfigError, match=r"got 2, but 3 workers need .* allowed: 3 or more"):
        batch_sizes(config_with({"train.global_batch_size": 2, "cluster.num_workers": 3}))


@pytest.mark.parametrize(
    ("train", "steps", "samples"),
    [
        ({}, 21, 300),
        ({"num_train_epochs": 1.0}, 7, 100),
        ({"num_train_epochs": 0.5}, 4, 64),
        ({"num_train_epochs": 1.5}, 11, 164),
        ({"max_steps": 8}, 8, 116),
        ({"max_steps": 1, "num_train_epochs": 9.0}, 1, 16),
    ],
)
def test_length(plan: Any, train: dict[str, Any], steps: int, samples: int) -> None:
    """100 rows in steps of 16: seven an epoch, the last of them short."""
    made = plan({f"train.{key}": value for key, value in train.items()})
    assert (made.steps_per_epoch, made.total_steps, made.total_samples) == (7, steps, samples)
    assert ("train.max_steps" in made.reasons) == ("max_steps" not in train)


def test_mixed_sets_lengthen_a_pass_and_are_shown_with_what_is_repeated(plan: Any) -> None:
    mix = {"data.mix": {"g.jsonl": 0.2, "h.jsonl": 0.1}}
    made = plan(mix, mixed=[1000, 5])
    # 300 of 10 in 7 samples; no step is short but the last.
    assert (made.steps_per_epoch, made.total_steps, made.total_samples) == (9, 27, 428)
    assert [(one.name, one.share) for one in made.mix] == [
        ("data.train", 0.7),
        ("g.jsonl", 0.2),
        ("h.jsonl", 0.1),
    ]
    assert made.mix[0].passes == 3.0
    assert made.sets.taken(made.total_samples)[0] == 300
    assert made.notes == [made.mix[2].warning()]
    shown = made.render()
    assert "mix        20 % of the samples from g.jsonl: 1,000 rows, 0.086 passes" in shown
    assert "note: the rows of h.jsonl are passed over 8.4 times" in shown
    assert "mix  " not in plan().render()
    short = plan({**mix, "train.max_steps": 2}, mixed=[1000, 5])
    assert (short.total_steps, short.total_samples) == (2, 32)
    assert not short.notes


@pytest.mark.parametrize(
    ("asked", "warmup"), [(0.06, 6), (0.0, 0), (0.5, 50), (1.0, 1), (30.0, 30), (500.0, 100)]
)
def test_warm_up_is_a_share_below_one_and_steps_above(plan: Any, asked: float, warmup: int) -> None:
    made = plan({"train.warmup_steps": asked, "train.max_steps": 100})
    assert made.warmup_steps == warmup


@pytest.mark.parametrize(
    ("train", "every", "save"),
    [
        ({}, 5, 5),
        ({"eval_steps": 3}, 3, 3),
        ({"eval_strategy": "epoch"}, 7, 7),
        ({"eval_strategy": "no"}, 0, 21),
        ({"eval_strategy": "no", "save_steps": 2}, 0, 2),
        ({"save_steps": 4}, 5, 4),
    ],
)
def test_evaluations_and_checkpoints(
    plan: Any, train: dict[str, Any], every: int, save: int
) -> None:
    made = plan({f"train.{key}": value for key, value in train.items()})
    assert (made.eval_steps, made.save_steps) == (every, save)


def test_a_plan_survives_json_and_shows_itself(plan: Any) -> None:
    made = plan({"cluster.num_workers": 2})
    assert Plan.model_validate_json(made.model_dump_json()) == made
    page = made.render()
    assert f"{PARAMS:,} parameters" in page
    for key, reason in made.reasons.items():
        assert f"{key} because {reason}" in page


def test_a_shape_stands_for_a_cluster() -> None:
    shape = ShapeConfig(nodes=3, cpus=32, memory="1.5TiB", gpus=8, gpu_memory="80GB")
    assert shape_capacity(shape) == Capacity(
        3, 32, 3 << 39, 8, 80 * 1000**3, source="cluster.shape"
    )


@pytest.mark.parametrize("text", ["80", "80 Gb", "-1GiB", "1.2.3GiB", ".GiB", "0GiB", "", "GiB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.shape\.gpu_memory: got .*such as 80GiB"):
        shape_capacity(ShapeConfig(gpu_memory=text))


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [(0, "0.0 KiB"), (1536, "1.5 KiB"), (3 << 20, "3.00 MiB"), (5 << 29, "2.50 GiB")],
)
def test_sizes_as_text(count_bytes: int, text: str) -> None:
    assert size_text(count_bytes) == text
