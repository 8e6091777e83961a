"""Bottleneck adapters: where they stand, that PEFT handles them, and what they cannot do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from distft import bottleneck, hf, plugin
from distft.config_sections import ModelConfig
from distft.errors import ConfigError

METHOD = plugin.methods()["bottleneck_adapter"]
TASKS = plugin.tasks()
LABELS = ["bad", "good", "plain"]
FRESH = """
import sys, json, torch, peft, transformers
import distft.bottleneck
folder, base, kind = sys.argv[1:4]
loaded = getattr(transformers, kind).from_pretrained(base, num_labels=3, dtype="float32")
module = peft.PeftModel.from_pretrained(loaded, folder).eval()
ids = torch.arange(5, 14)[None]
print(json.dumps(module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()))
"""


def attached(folder: Path, task: str, **keys: Any) -> Any:
    model = hf.load_model(ModelConfig(id=str(folder), dropout=0.0), TASKS[task], LABELS, seed=1)
    torch.manual_seed(3)
    return METHOD.attach(model, METHOD.config(**keys), TASKS[task]).eval()


def disturb(module: nn.Module) -> None:
    """Give the adapters weights that do something."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".bottleneck_" in name:
                parameter.normal_(0, 0.3)


def hand_made(x: torch.Tensor, layer: Any) -> torch.Tensor:
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    before = layer.base_layer(x)
    return before + torch.relu(before @ down.weight.T + down.bias) @ up.weight.T + up.bias


@pytest.mark.parametrize(
    ("style", "ends"),
    [("pfeiffer", {"mlp.down_proj"}), ("houlsby", {"mlp.down_proj", "self_attn.o_proj"})],
)
def test_adapters_stand_behind_the_sublayers(style: str, ends: set[str], chat_llama: Path) -> None:
    module = attached(chat_llama, "sft", style=style, reduction_factor=4)
    disturb(module)
    found = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, bottleneck.BottleneckLayer)
    }
    assert {".".join(name.split(".")[-2:]) for name in found} == ends
    assert len(found) == 2 * len(ends)
    for layer in found.values():
        x = torch.randn(2, 3, layer.base_layer.in_features)
        torch.testing.assert_close(layer(x), hand_made(x, layer))


@pytest.mark.parametrize(
    ("architecture", "both"), [("gpt2", 4), ("t5", 10), ("distilbert", 4), ("roberta", 4)]
)
def test_places_on_other_architectures(architecture: str, both: int) -> None:
    from transformers import AutoConfig, AutoModel

    shapes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    config = AutoConfig.for_model(architecture, **shapes)
    if architecture == "t5":
        config.num_decoder_layers = 2
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    feed_forward = bottleneck.places(model, after_attention=False)
    # The T5 decoder has two attentions to a block.
    assert len(bottleneck.places(model, after_attention=True)) == both
    assert len(feed_forward) == (4 if architecture == "t5" else 2)


def test_peft_saves_lists_switches_off_and_unloads_them(chat_llama: Path, tmp_path: Path) -> None:
    ids = torch.arange(5, 14)[None]
    module = attached(chat_llama, "sft")
    plain = copy.deepcopy(module)(input_ids=ids).logits
    disturb(module)
    changed = module(input_ids=ids).logits
    assert not torch.allclose(changed, plain, atol=1e-2)
    with module.disable_adapter():
        assert torch.equal(module(input_ids=ids).logits, plain)
    assert torch.equal(module(input_ids=ids).logits, changed)
    assert module.get_model_status().peft_types == {"default": "BOTTLENECK_ADAPTER"}
    listed = [status.name for status in module.get_layer_status()]
    assert listed == [f"model.model.layers.{block}.mlp.down_proj" for block in (0, 1)]
    module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == (
        "BOTTLENECK_ADAPTER"
    )
    assert type(peft.PeftConfig.from_pretrained(tmp_path)) is bottleneck.BottleneckConfig
    assert torch.equal(module.unload()(input_ids=ids).logits, plain)


def test_they_cannot_be_merged(chat_llama: Path) -> None:
    assert not METHOD.merges
    with pytest.raises(NotImplementedError):
        attached(chat_llama, "sft").merge_and_unload()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "task"), [("tiny_bert", "seq_cls"), ("chat_llama", "sft")], ids=["bert", "llama"]
)
def test_a_saved_adapter_says_the_same_in_a_fresh_process(
    folder: str, task: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(folder)
    module = attached(base, task, style="houlsby", ln_before=True, non_linearity="tanh")
    disturb(module)
    module.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path), str(base), TASKS[task].auto_class],
        capture_output=True,
        text=True,
        check=True,
    )
    ids = torch.arange(5, 14)[None]
    said = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    there = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(there, said, atol=1e-5, rtol=0)


def test_an_unknown_architecture_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    with torch.device("meta"):
        model = MambaForCausalLM(MambaConfig(num_hidden_layers=1))
    with pytest.raises(ConfigError, match="does not know where the sublayers of mamba") as caught:
        METHOD.attach(model, METHOD.config(), TASKS["sft"])
    assert "lora" in caught.value.hint
