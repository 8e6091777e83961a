"""What is trained, saved and loaded in another process says the same, and merged too."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distft import hf, plugin
from distft.config_file import parse
from distft.errors import ConfigError
from distft.train.model import builder
from distft.train.optimizer import build_optimizer

METHODS = plugin.methods()
LABELS = ["bad", "good", "plain"]
MERGE_TOLERANCE = 1e-4
FACTS = {
    path.stem: runpy.run_path(str(path))
    for path in sorted((Path(__file__).parent / "facts").glob("*.py"))
}
LORA: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-fast": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": {"rank_pattern": {"up_proj": 2, "key": 2}, "alpha_pattern": {"dense|v_proj": 5}},
    "pissa-dora-rslora-patterns": {
        "init_lora_weights": "pissa",
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"dense|up_proj": 2},
        "alpha_pattern": {"value|v_proj": 5},
    },
}
MADE_FROM_WEIGHTS = [name for name in LORA if "pissa" in name or name == "olora"]
LOADER = """
import json, sys
from pathlib import Path
import torch, transformers, peft
from safetensors.torch import save_file
from distft import hf, plugin

torch.set_num_threads(1)
for line in sys.stdin:
    case = json.loads(line)
    folder, task = Path(case["folder"]), plugin.tasks()[case["task"]]
    inputs = {k: torch.tensor(v) for k, v in case["inputs"].items()}
    if case["plain"]:
        auto = getattr(transformers, task.auto_class)
        config = transformers.AutoConfig.from_pretrained(folder)
        base = auto.from_pretrained(case["base"], config=config)
        model = peft.PeftModel.from_pretrained(base, folder).eval()
    else:
        model = hf.load_folder(folder, task)
    with torch.inference_mode():
        save_file({"logits": model(**inputs).logits.contiguous()}, folder / "said.safetensors")
"""


@dataclass
class Case:
    """A trained and saved model."""

    said: torch.Tensor
    folder: Path
    merged: torch.Tensor | None
    at_start: float
    """How much attaching changed the logits."""


NAMES = [
    *((place, method, "") for place in ("bert", "llama", "headless") for method in METHODS),
    *((place, "lora", variant) for place in ("bert", "llama") for variant in LORA),
]
TASK = {"bert": "seq_cls", "llama": "sft", "headless": "masked_lm"}
"""Headless: the BERT for a task whose head its files lack."""


def goes(place: str, method: str) -> bool:
    known = METHODS[method]
    refused = known.refuses(known.config.model_validate({"name": method}))
    places = FACTS[method].get("ARCHITECTURES", ("bert", "llama"))
    return f"task={TASK[place]}" not in refused and {"headless": "bert"}.get(place, place) in places


def trained(place: str, method: str, variant: str, model: Path, folder: Path) -> Case:
    task, chosen = plugin.tasks()[TASK[place]], METHODS[method]
    settings = dict(FACTS[method]["SETTINGS"])
    if variant:
        known = {"bert": ("key", "value", "dense"), "llama": ("up_proj", "v_proj")}[place]
        settings |= LORA[variant]
        for key in ("rank_pattern", "alpha_pattern"):
            # The names of the other architecture would be refused.
            found = {k: v for k, v in settings.get(key, {}).items() if set(k.split("|")) & {*known}}
            settings[key] = found
    raw = {"name": "x", "model": {"id": str(model), "dropout": 0.0}, "task": task.name}
    raw |= {"data": {"train": "none"}, "method": {"name": method, **settings}}
    config = parse(raw)
    labels = LABELS if task.classes else []
    module = builder(config, labels)(None)
    with torch.inference_mode():
        base = hf.load_model(config.model, task, labels, seed=config.train.seed).eval()
        at_start = float((module.eval()(**INPUTS).logits - base(**INPUTS).logits).abs().max())
    module.train()
    optimizer = build_optimizer(module, config, FACTS[method]["LEARNING_RATE"])
    for _ in range(3):
        module(**INPUTS).logits.float().log_softmax(-1)[..., 0].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    hf.save_folder(module, config.model, folder)
    merged = None
    with torch.inference_mode():
        said = module.eval()(**INPUTS).logits
        if chosen.merges:
            merged = module.merge_and_unload().eval()(**INPUTS).logits
    return Case(said, folder, merged, at_start)


INPUTS = {
    "input_ids": torch.arange(4, 16).reshape(2, 6),
    "attention_mask": torch.ones(2, 6, dtype=torch.long),
}


@pytest.fixture(scope="module")
def cases(
    tiny_bert: Path, chat_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str, str], Case]:
    """Every method trained for three steps, saved, and loaded by one other process."""
    models = {"bert": tiny_bert, "llama": chat_llama, "headless": tiny_bert}
    made, lines = {}, []
    for name in NAMES:
        place, method, variant = name
        if not goes(place, method):
            continue
        folder = tmp_path_factory.mktemp("-".join(filter(None, name)))
        made[name] = trained(*name, models[place], folder)
        about = {"folder": str(folder), "task": TASK[place], "base": str(models[place])}
        inputs = {key: value.tolist() for key, value in INPUTS.items()}
        lines.append(json.dumps(about | {"inputs": inputs, "plain": bool(variant)}))
    subprocess.run([sys.executable, "-c", LOADER], input="\n".join(lines), text=True, check=True)
    return made


@pytest.mark.parametrize("name", [n for n in NAMES if goes(*n[:2])], ids="-".join)
def test_saved_and_loaded_elsewhere_says_the_same(cases, name) -> None:
    case = cases[name]
    loaded = load_file(case.folder / "said.safetensors")["logits"]
    torch.testing.assert_close(loaded, case.said, atol=2e-5, rtol=1e-5)
    assert case.said.abs().max() > 0.01


MERGING = [n for n in NAMES if goes(*n[:2]) and METHODS[n[1]].merges]


@pytest.mark.parametrize("name", MERGING, ids="-".join)
def test_merged_says_the_same(cases, name) -> None:
    merged = cases[name].merged
    torch.testing.assert_close(merged, cases[name].said, atol=MERGE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("place", ["bert", "llama"])
@pytest.mark.parametrize("variant", LORA)
def test_variants_of_lora_begin_where_the_base_is(cases, place: str, variant: str) -> None:
    changed = cases[place, "lora", variant].at_start
    assert (changed > 1e-3) if variant == "random" else (changed < 1e-4)


@pytest.mark.parametrize("variant", MADE_FROM_WEIGHTS)
def test_the_saved_adapter_is_for_the_untouched_base(cases, variant: str) -> None:
    """Twice the rank: what was taken out of the base is in the adapter with a minus."""
    folder = cases["llama", "lora", variant].folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == 2 * FACTS["lora"]["SETTINGS"]["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert any(".lora_A." in name and len(t) == config["r"] for name, t in tensors.items())


@pytest.mark.parametrize("variant", ["pissa", "olora"])
def test_a_count_decomposes_nothing(
    chat_llama: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("a weight was decomposed")

    monkeypatch.setattr(torch.linalg, "svd", never)
    monkeypatch.setattr(torch.linalg, "qr", never)
    task, lora = plugin.tasks()["sft"], METHODS["lora"]
    model = hf.build_meta(parse_model(chat_llama), task, [])
    with torch.device("meta"):
        module = lora.attach(model, lora.config(init_lora_weights=variant), task)
    assert any(p.requires_grad for p in module.parameters())


def parse_model(folder: Path) -> Any:
    return parse({"name": "x", "model": str(folder), "data": {"train": "f"}}).model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_pattern": {"no_such_layer": 2}}, r"rank_pattern: 'no_such_layer' matches no layer"),
        ({"alpha_pattern": {"no_such_layer": 2}}, r"alpha_pattern: 'no_such_layer' matches no"),
        ({"init_lora_weights": "orthogonal", "r": 3}, r"method: Orthogonal .* even, got 3"),
    ],
)
def test_what_lora_cannot_do_is_refused(chat_llama: Path, settings, message: str) -> None:
    task, lora = plugin.tasks()["sft"], METHODS["lora"]
    model = hf.load_model(parse_model(chat_llama), task, [], seed=1)
    with pytest.raises(ConfigError, match=message):
        lora.attach(model, lora.config(**settings), task)


def test_lora_plus_trains_b_faster(chat_llama: Path) -> None:
    raw = {"name": "x", "model": str(chat_llama), "task": "sft", "data": {"train": "f"}}
    config = parse(raw | {"method": {"name": "lora", "loraplus_lr_ratio": 16.0}})
    module = builder(config, [])(None)
    groups = build_optimizer(module, config, 1e-3).param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["pace"].scale == (16 if ".lora_B." in names[id(parameter)] else 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHAA"}, r"peft_type: got 'LOHAA'; allowed: ADAMSS, BEFT, BOFT, .*LOHA"),
        ({"peft_type": "LORA"}, r"peft_type: got 'LORA' \(it is method lora\); allowed: ADAMSS"),
        ({"options": {"rank": 2}}, r"options: LOHA has no 'rank'; allowed: .*module_dropout"),
        ({"peft_type": "BOFT", "options": {"boft_block_size": 0}}, r"options: Either"),
    ],
)
def test_what_peft_cannot_do_is_refused(chat_llama: Path, settings, message: str) -> None:
    task, chosen = plugin.tasks()["sft"], METHODS["peft"]
    model = hf.build_meta(parse_model(chat_llama), task, [])
    with pytest.raises(ConfigError, match=message):
        chosen.attach(model, chosen.config(**settings), task)
