"""The presets for large models: each plans, and its memory is what papers and a hand say."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distft import api
from distft.capacity import GIB
from distft.config_file import load
from distft.errors import PlanError
from distft.plan import Plan

ROOT = Path(__file__).parents[2]
PRESETS = sorted(
    (path.stem for path in (ROOT / "configs").glob("*b-*.yaml")),
    key=lambda name: (name.split("-")[0], int(name.split("-")[1].removesuffix("b")), name),
)
"""Named method-size-machines."""


@cache
def planned(name: str, *overrides: str) -> Plan:
    return api.plan(load(ROOT / "configs" / f"{name}.yaml", overrides))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_plans_as_it_is_named(name: str) -> None:
    made, config = planned(name), load(ROOT / "configs" / f"{name}.yaml")
    method, size, where = name.split("-")[:3]
    shape = config.cluster.shape
    assert shape is not None
    assert config.method.name == method
    assert made.params == pytest.approx(int(size.removesuffix("b")) * 1e9, rel=0.06)
    nodes = re.fullmatch(r"(\d)(?:nodes?|gpu)", where)
    assert nodes
    assert shape.nodes == (int(nodes[1]) if "node" in where else 1)
    assert made.world_size == shape.nodes * shape.gpus
    assert made.zero_stage == (3 if method == "full" else 0)
    ending = name.rpartition("-")[2]
    assert made.offload == {"offload": "cpu", "nvme": "nvme"}.get(ending, "none")
    assert made.memory.peak_bytes <= made.memory.available_bytes
    assert made.memory.host_bytes <= made.memory.host_available_bytes
    page = made.render()
    assert "of activations" in page
    assert ("main memory" in page) == (made.offload != "none")
    assert ("disk at cluster.nvme_path" in page) == (made.offload == "nvme")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # Numbers of parameters on the models' cards: 8.03B, 14.8B, 32.8B, 70.6B.
        ("full-8b-1node", 8.03e9),
        ("full-14b-1node", 14.8e9),
        ("full-32b-2nodes", 32.8e9),
        ("full-70b-4nodes", 70.6e9),
    ],
)
def test_parameters_are_as_published(name: str, published: float) -> None:
    assert planned(name).params == pytest.approx(published, rel=0.003)


def test_states_on_64_gpus_are_those_of_the_zero_paper() -> None:
    """Figure 1 of Rajbhandari et al. 2020 (arXiv 1910.02054): 7.5B parameters, 64 GPUs, Adam."""
    made = planned(
        "full-8b-1node",
        *("cluster.num_workers=64", "cluster.shape.nodes=8", "train.global_batch_size=256"),
    )
    published = {"0": 120e9, "1": 31.4e9, "2": 16.6e9, "3": 1.9e9}
    scaled = {stage: size * 7.5e9 / made.params for stage, size in made.memory.by_stage.items()}
    assert scaled == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # 2 bytes of weights, 2 of gradients, 12 of masters and moments, over all GPUs.
        ("full-8b-1node", 8.03e9 * 16 / 8),
        ("full-14b-1node", 14.77e9 * 16 / 8),
        ("full-32b-2nodes", 32.76e9 * 16 / 16),
        ("full-70b-4nodes", 70.55e9 * 16 / 32),
        # The weights alone: gradients and optimizer are in main memory.
        ("full-32b-1node-offload", 32.76e9 * 2 / 8),
        ("full-70b-1node-offload", 70.55e9 * 2 / 8),
        ("full-70b-1node-nvme", 70.55e9 * 2 / 8),
        # Embeddings and output layer in bfloat16, the rest in 4 bits with scales of 0.127 bits a
        # weight (Dettmers et al. 2023, arXiv 2305.14314, section 3), and the adapter: rank 16
        # beside each linear layer of 80 blocks, 16 bytes a parameter.
        (
            "qlora-70b-1gpu",
            2 * 2 * 128256 * 8192
            + (70.55e9 - 2 * 128256 * 8192) * 4.127 / 8
            + 16 * 16 * 80 * (2 * 16384 + 2 * (8192 + 1024) + 3 * (8192 + 28672)),
        ),
    ],
)
def test_states_are_as_by_hand(name: str, by_hand: float) -> None:
    assert planned(name).memory.total_bytes == pytest.approx(by_hand, rel=0.01)


def test_offloaded_states_are_as_by_hand() -> None:
    """Masters, moments and gradients in float32 (16 bytes) and gradients in bfloat16 (2).

    18 bytes a parameter is also what DeepSpeed's own estimate of main memory begins with
    (`estimate_zero3_model_states_mem_needs`).
    """
    assert planned("full-70b-1node-offload").memory.host_bytes == pytest.approx(18 * 70.55e9, 0.01)
    two = planned("full-70b-2nodes-offload").memory.host_bytes
    assert two == pytest.approx(18 * 70.55e9 / 2, 0.01)


def test_states_on_disks_are_as_by_hand() -> None:
    """On the disk 16 bytes a parameter, as in ZeRO-Infinity (arXiv 2104.07857, section 3, 20 bytes
    with weights and gradients in 16 bits). In main memory gradients in bfloat16, and of each of 8
    workers 4 buffers of 250 million float32 numbers and the largest weight's part. On a card, in
    the optimizer's step, its part of the gradients in float32."""
    memory = planned("full-70b-1node-nvme").memory
    assert memory.disk_bytes == pytest.approx(16 * 70.55e9, rel=0.001)
    buffers = 8 * 4 * 4 * (250e6 + 128256 * 8192 / 8)
    assert memory.host_bytes == pytest.approx(2 * 70.55e9 + buffers, rel=0.001)
    assert memory.step_bytes == pytest.approx(4 * 70.55e9 / 8, rel=0.001)


@pytest.mark.parametrize(
    ("name", "rows", "depth", "width", "vocabulary"),
    [
        ("full-8b-1node", 2, 32, 4096, 128256),
        ("full-14b-1node", 1, 40, 5120, 151936),
        ("full-32b-2nodes", 1, 64, 5120, 152064),
        ("full-70b-4nodes", 1, 80, 8192, 128256),
    ],
)
def test_activations_are_as_by_hand(
    name: str, rows: int, depth: int, width: int, vocabulary: int
) -> None:
    """With checkpointing 2 s b h bytes of each block stay (arXiv 2205.05198, table 2), and at the
    peak the logits in bfloat16 and thrice in float32: themselves, their logarithms, the gradient.
    """
    positions = 4096 * rows
    by_hand = 2 * positions * width * depth + (2 + 3 * 4) * positions * vocabulary
    assert planned(name).memory.activations_bytes == pytest.approx(by_hand, rel=0.05)


def test_without_checkpointing_every_block_keeps_what_a_hand_counts() -> None:
    """arXiv 2205.05198, section 4.1, for a block of today: RMS norms, grouped heads, gated
    feed-forward, attention whose scores are not kept, bfloat16 (bytes of a position)."""
    plain = ("train.gradient_checkpointing=false", "train.per_device_train_batch_size=1")
    sizes = [
        planned(
            "full-8b-1node", *plain, "data.cutoff_len=1024", f"model.shape.num_hidden_layers={d}"
        ).memory.activations_bytes
        for d in (4, 5)
    ]
    assert None not in sizes
    h, f, tokens = 4096, 14336, 1024
    # A norm keeps its input in float32, and what comes of it before and after the weight.
    norm = 4 * h + 2 * h + 2 * h
    # Queries, keys and values, the last two repeated for every head of the queries because a mask
    # stands beside them; what comes out; a float32 number a head.
    attention = 4 * 2 * h + 4 * 32
    # Gate, its SiLU, the other half, their product.
    feed_forward = 4 * 2 * f
    # The mask in bfloat16, a number for each pair.
    mask = 2 * tokens
    by_hand = tokens * (2 * norm + attention + feed_forward + mask)
    assert float(sizes[1] - sizes[0]) == pytest.approx(by_hand, rel=0.01)  # type: ignore[operator]


def test_what_does_not_fit_names_a_micro_batch_and_workers_that_do() -> None:
    with pytest.raises(PlanError, match=r"need 32\.85 GiB a worker and .* on top") as caught:
        planned("full-70b-4nodes", "train.per_device_train_batch_size=4")
    found = re.search(r"batch_size=(\d) with zero_stage=3 fits", caught.value.hint)
    assert found
    planned("full-70b-4nodes", f"train.per_device_train_batch_size={found[1]}")
    with pytest.raises(PlanError) as caught:
        planned("full-70b-4nodes", "cluster.num_workers=8", "cluster.shape.nodes=1")
    found = re.search(r"num_workers=(\d+) with zero_stage=3 would fit", caught.value.hint)
    assert found
    fits = math.ceil(int(found[1]) / 8)
    planned("full-70b-4nodes", f"cluster.num_workers={fits * 8}", f"cluster.shape.nodes={fits}")
    with pytest.raises(PlanError, match=r"offload=cpu needs 1182\.75 GiB of a node's main memory"):
        planned("full-70b-1node-offload", "cluster.shape.memory=1TiB")


def test_a_micro_batch_that_is_free_is_the_largest_that_fits() -> None:
    free = planned("full-8b-1node", "train.per_device_train_batch_size=null")
    assert free.per_device_train_batch_size == 4
    assert free.reasons["train.per_device_train_batch_size"] == "4 is what fits"
    assert free.memory.peak_bytes <= free.memory.available_bytes
    assert free.gradient_accumulation_steps == free.global_batch_size // (4 * free.world_size)
    with pytest.raises(PlanError):
        planned("full-8b-1node", "train.per_device_train_batch_size=8")
    with pytest.raises(PlanError, match="on top of them"):
        planned(
            "full-8b-1node", "cluster.shape.gpu_memory=24GiB", "train.gradient_checkpointing=no"
        )


def _gib(size: Any) -> str:
    return f"{size / GIB:.1f}"


def _row(name: str) -> str:
    made = planned(name)
    memory = made.memory
    cells = [
        f"`{name}`",
        f"{made.params / 1e9:.2f}B",
        str(made.world_size),
        f"{made.zero_stage}{', ' + made.offload if made.offload != 'none' else ''}",
        f"{made.micro_batch_tokens:,}",
        _gib(memory.total_bytes),
        _gib(memory.activations_bytes),
        _gib(memory.peak_bytes),
        _gib(memory.available_bytes),
        _gib(memory.host_bytes) if memory.host_bytes else "-",
        _gib(memory.disk_bytes) if memory.disk_bytes else "-",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_readme_has_the_presets_memory() -> None:
    shown = re.findall(r"^\| `(?:full|q?lora)-\d+b-.*\|$", (ROOT / "README.md").read_text(), re.M)
    assert shown == [_row(name) for name in PRESETS]
