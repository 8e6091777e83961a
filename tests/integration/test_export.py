"""Exports are loaded in a fresh process, as their own card says, and compared with the training."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distft import api, plugin
from distft.errors import ExportError, PlanError
from distft.export import TOLERANCE, verify
from distft.records import read_record

RUNS = runpy.run_path(str(Path(__file__).with_name("export_runs.py")))
GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "conftest.py"))

# The names a reader of the card fills in, the card's own code, and a look at what came out.
SCRIPT = """
BASE_MODEL = {base!r}
FOLDER = {folder!r}
{card}
import json, sys, torch
from safetensors.torch import load_file, save_file
probe = load_file({probe!r})
with torch.inference_mode():
    logits = model(input_ids=probe["input_ids"], attention_mask=probe["attention_mask"]).logits
save_file({{"logits": logits.float().contiguous()}}, {out!r})
assert not any(name.startswith(("distft", "ray", "deepspeed")) for name in sys.modules)
print(json.dumps([tokenizer({text!r})["input_ids"], model.config.id2label]))
"""


def card_says(run: Path, exported: Path, tmp_path: Path) -> tuple[torch.Tensor, Any]:
    """Logits on the probe rows and what else a fresh process finds, by the card's own code."""
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    out = tmp_path / "said.safetensors"
    script = SCRIPT.format(
        base=read_record(run).config["model"]["id"],
        folder=str(exported),
        card=code,
        probe=str(run / "probe.safetensors"),
        out=str(out),
        text="the film is fine",
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return load_file(out)["logits"], json.loads(done.stdout.splitlines()[-1])


def worst(run: Path, logits: torch.Tensor) -> float:
    """Largest difference from what the engine recorded, where a token stands."""
    probe = load_file(run / "probe.safetensors")
    used = probe["attention_mask"].bool() if logits.dim() == 3 else slice(None)
    return float((logits[used] - probe["logits"][used]).abs().max())


@pytest.mark.parametrize(
    ("kind", "merge", "written"),
    [
        pytest.param("bert-lora", False, "adapter", marks=pytest.mark.slow),
        ("bert-lora", True, "merged"),
        ("bert-full", False, "full"),
        ("llama-lora", False, "adapter"),
        ("llama-lora", True, "merged"),
    ],
)
def test_a_fresh_process_loads_what_was_trained(
    runs, kind: str, merge: bool, written: str, tmp_path: Path
) -> None:
    run = runs(kind)
    target = tmp_path / "out" / "model"
    result = api.export(run, target, merge=merge)
    assert result["kind"] == written
    assert result["path"] == str(target)
    assert result["max_logit_difference"] <= result["tolerance"] == TOLERANCE
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "adapter_config.json").exists() == (written == "adapter")
    assert not list(target.glob("*.bin")), "weights are safetensors"
    logits, (ids, names) = card_says(run, target, tmp_path)
    difference = worst(run, logits)
    print(f"largest difference of a logit in a fresh process: {difference:.2e}")
    assert difference <= TOLERANCE
    # The comparison can tell: the untrained model says something else.
    assert logits.std() > 100 * TOLERANCE
    from transformers import AutoTokenizer

    record = read_record(run)
    base = AutoTokenizer.from_pretrained(record.config["model"]["id"])
    assert ids == base("the film is fine")["input_ids"]
    if record.data.labels:
        assert list(names.values()) == record.data.labels


def test_training_moved_the_logits_far_beyond_the_tolerance(runs) -> None:
    """Else every comparison above would pass with the base model."""
    from transformers import AutoModelForCausalLM

    run = runs("llama-lora")
    base = AutoModelForCausalLM.from_pretrained(read_record(run).config["model"]["id"])
    probe = load_file(run / "probe.safetensors")
    with torch.inference_mode():
        logits = base(input_ids=probe["input_ids"], attention_mask=probe["attention_mask"]).logits
    assert worst(run, logits) > 1000 * TOLERANCE


def test_one_layer_left_unmerged_is_caught(runs, tmp_path: Path) -> None:
    run = runs("llama-lora")
    record = read_record(run)
    merged = tmp_path / "merged"
    api.export(run, merged, merge=True)
    base = load_file(Path(record.config["model"]["id"]) / "model.safetensors")
    path = merged / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.self_attn.v_proj.weight"
    assert not torch.equal(weights[name], base[name])
    save_file({**weights, name: base[name]}, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="differ from the trained model's by"):
        verify(run, record, merged)
    save_file(weights, path, metadata={"format": "pt"})
    assert verify(run, record, merged) <= TOLERANCE


def test_an_empty_tensor_is_caught(runs, tmp_path: Path) -> None:
    """What a ZeRO-3 partition leaves behind when nobody gathers it."""
    run = runs("llama-lora")
    merged = tmp_path / "merged"
    api.export(run, merged, merge=True)
    path = merged / "model.safetensors"
    weights = {**load_file(path), "model.norm.weight": torch.empty(0)}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"the empty tensor model\.norm\.weight"):
        verify(run, read_record(run), merged)


@pytest.fixture
def changed_base(runs, llama_base: Path) -> Iterator[None]:
    """Someone overwrites the base model after the training."""
    runs("llama-lora")
    path = llama_base / "model.safetensors"
    kept = path.read_bytes()
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"] += 0.05
    save_file(weights, path, metadata={"format": "pt"})
    yield
    path.write_bytes(kept)


@pytest.mark.usefixtures("changed_base")
@pytest.mark.parametrize("merge", [False, True])
def test_a_failed_proof_leaves_nothing_behind(runs, merge: bool, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(ExportError, match="not the model that was trained") as caught:
        api.export(runs("llama-lora"), target, merge=merge)
    assert caught.value.exit_code == 4
    assert "base model has not changed" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_not_exported(runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("llama-lora"), run)
    step = read_record(run).best["step"]
    (state,) = (run / "checkpoints" / f"step-{step:08d}" / "state").iterdir()
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(ExportError, match=r"cannot be exported: .* is damaged"):
        api.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_target_in_use_is_refused(runs, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("x")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("x")
    with pytest.raises(PlanError, match="exists and is not empty") as caught:
        api.export(runs("llama-lora"), target)
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_merging_a_full_run_is_refused(runs, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nothing to merge") as caught:
        api.export(runs("bert-full"), tmp_path / "out", merge=True)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["five-classes", "no-pooler"])
def test_the_card_loads_a_base_whose_head_does_not_fit(
    kind: str, runs_folder: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """The base was itself a classifier, of five classes, or pre-trained without a pooler."""
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

    base = runs_folder / kind
    if kind == "no-pooler":
        AutoModelForMaskedLM.from_pretrained(tiny_bert).save_pretrained(base)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=5)
        model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(base)
    lora = {"name": "lora", "r": 4}
    run = RUNS["finished_run"](
        runs_folder, f"on-{kind}", str(base), "seq_cls", lora, learning_rate=3e-3
    )
    logits, _ = card_says(run, run / "model", tmp_path)
    assert logits.shape[-1] == 3
    assert worst(run, logits) <= TOLERANCE
    api.export(run, tmp_path / "merged", merge=True)
    logits, _ = card_says(run, tmp_path / "merged", tmp_path)
    assert worst(run, logits) <= TOLERANCE


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two real processes of one gloo world."""
    group = GOLDEN["Group"](2, tmp_path_factory.mktemp("world-2"))
    yield group
    group.close()


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_two_workers_under_zero_3_export_whole_tensors(
    pair, runs_folder: Path, llama_base: Path, method: str, tmp_path: Path
) -> None:
    config, rows = RUNS["config_of"](
        runs_folder,
        f"zero-3-{method}",
        str(llama_base),
        "sft",
        {"name": method},
        learning_rate=1e-2,
    )
    cluster = config.cluster.model_copy(update={"num_workers": 2, "zero_stage": 3})
    config = config.model_copy(update={"cluster": cluster})
    root = RUNS["prepare"](config, rows)
    made, record = RUNS["start"](config, root)
    assert (made.engine, made.world_size, made.zero_stage) == ("deepspeed", 2, 3)
    case = {
        "config": config.dump(),
        "data_root": str(root),
        "run_dir": str(config.run_dir),
        "config_hash": record.config_hash,
    }
    pair.run(case)
    RUNS["end"](config, record)
    written = load_file(next((config.run_dir / "model").glob("*.safetensors")))
    assert written
    assert all(tensor.numel() for tensor in written.values())
    logits, _ = card_says(config.run_dir, config.run_dir / "model", tmp_path)
    assert worst(config.run_dir, logits) <= TOLERANCE
    assert plugin.methods()[method].adapter == (method == "lora")
