"""Blocks that open from the top: bit-equal before their start, moving after it, at any stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distft.train import checkpoint

STEPS = 8
METHOD = {
    "name": "layerwise",
    "gradual_unfreezing": True,
    "unfreeze_share": 0.75,
    "learning_rate_decay": 0.5,
}
OPENS = {"lm_head": 0, "norm": 0, "layers.1": 2, "layers.0": 4, "embed_tokens": 6}
"""Part of the tiny Llama -> first step that moves it: 0.75 of 8 steps over 3 stages."""
DOWN = {"lm_head": 0, "norm": 0, "layers.1": 1, "layers.0": 2, "embed_tokens": 3}


def part_of(name: str) -> str:
    return next(part for part in OPENS if f".{part}." in f".{name}")


def case(model: Path, data: Path, run_dir: Path, world: int, stage: int) -> dict[str, Any]:
    run_dir.mkdir()
    cluster: dict[str, Any] = {"num_workers": world}
    if world > 1:
        cluster["zero_stage"] = stage
    return {
        "run_dir": str(run_dir),
        "data_root": str(data),
        "config": {
            "name": "layerwise",
            "model": {"id": str(model)},
            "task": "sft",
            "data": {"train": "none"},
            "method": METHOD,
            "train": {
                "global_batch_size": 8,
                "max_steps": STEPS,
                "learning_rate": 0.02,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.1,
                "logging_steps": 1,
                "eval_strategy": "no",
                "save_steps": 1,
                "save_total_limit": STEPS,
            },
            "cluster": cluster,
        },
    }


def weights(run: dict[str, Any], step: int, names: list[str]) -> dict[str, torch.Tensor]:
    read = checkpoint.read_state(checkpoint.step_dir(Path(run["run_dir"]), step))
    return {name: read(name)["param"] for name in names}


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 2)])
def test_a_block_stands_still_until_it_opens(
    one, two, tiny_llama, progressions, tmp_path, world, stage
) -> None:
    from transformers import LlamaForCausalLM

    run = case(tiny_llama, progressions, tmp_path / "run", world, stage)
    lines = (one if world == 1 else two).run(run)
    first = dict(LlamaForCausalLM.from_pretrained(tiny_llama).named_parameters())
    for step in range(1, STEPS + 1):
        now = weights(run, step, list(first))
        before = first if step == 1 else weights(run, step - 1, list(first))
        moved = {name for name in first if not torch.equal(now[name], before[name])}
        assert moved == {name for name in first if OPENS[part_of(name)] < step}, step
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_zero_2_equals_torch(one, two, tiny_llama, progressions, tmp_path) -> None:
    alone = case(tiny_llama, progressions, tmp_path / "alone", 1, 0)
    shared = case(tiny_llama, progressions, tmp_path / "shared", 2, 2)
    ours, theirs = (
        torch.tensor([line["loss"] for line in lines if "loss" in line])
        for lines in (two.run(shared), one.run(alone))
    )
    torch.testing.assert_close(ours, theirs, atol=2e-5 * float(theirs.max()), rtol=0)


def test_the_rate_falls_block_by_block(tiny_llama: Path) -> None:
    from distft import hf, plugin
    from distft.config_sections import ModelConfig

    method, task = plugin.methods()["layerwise"], plugin.tasks()["sft"]
    config = method.config.model_validate(METHOD)
    model = hf.build_meta(ModelConfig(id=str(tiny_llama)), task, [])
    paces = method.paces(method.attach(model, config, task), config)
    assert paces.keys() == dict(model.named_parameters()).keys()
    for name, pace in paces.items():
        part = part_of(name)
        assert pace.scale == 0.5 ** DOWN[part]
        assert pace.start == OPENS[part] / STEPS
    flat = method.config.model_validate({**METHOD, "gradual_unfreezing": False})
    assert {pace.start for pace in method.paces(model, flat).values()} == {0.0}


def test_a_decoder_opens_before_its_encoder(tiny_t5: Path) -> None:
    from distft import hf, plugin
    from distft.config_sections import ModelConfig

    method, task = plugin.methods()["layerwise"], plugin.tasks()["seq2seq"]
    config = method.config.model_validate({"name": "layerwise"})
    model = hf.build_meta(ModelConfig(id=str(tiny_t5)), task, [])
    paces = method.paces(method.attach(model, config, task), config)
    starts = [
        {pace.start for name, pace in paces.items() if name.startswith(part)}
        for part in (
            "lm_head",
            "decoder.final",
            "decoder.block.1",
            "decoder.block.0",
            "encoder.block.1",
            "encoder.block.0",
            "shared",
        )
    ]
    ordered = [start for found in starts for start in found]
    assert ordered == sorted(ordered)
    assert all(len(found) <= 1 for found in starts)
    assert ordered[0] == 0.0
    assert ordered[-1] == 0.5
