"""Checkpoint -> a Hugging Face folder with a card, proven against what the trained model said.

The model is assembled in one plain process from the base and the trained weights of the best
checkpoint, so nothing of ZeRO's partitioning can reach it; then it is loaded again from disk and
its logits are compared with those the engine recorded at the end of training.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from distft import hf, plugin
from distft.config_file import parse
from distft.errors import ExportError, PlanError
from distft.records import RunRecord, read_record, share, write_text
from distft.report.card import model_card
from distft.train import checkpoint

TOLERANCE = 1e-4
"""Largest difference of a logit in float32, relative to the largest logit where that is above 1."""
BF16_TOLERANCE = 5e-2


def export(run_dir: Path, target: Path, *, merge: bool = False) -> dict[str, Any]:
    """Write a run's model to a folder and prove it.

    Args:
        run_dir: A run whose training has finished.
        target: Must not exist, or be empty.
        merge: Fold an adapter into the base weights.

    Returns:
        `path, kind (adapter, merged or full), max_logit_difference, tolerance`.

    Raises:
        ConfigError: The directory is no run.
        PlanError: The target holds something, or the method cannot be merged.
        ExportError: The written model does not say what the trained one said; nothing is left.
    """
    record = read_record(run_dir)
    method = plugin.methods()[record.config["method"]["name"]]
    if merge and not method.merges:
        raise PlanError(
            f"Method {method.name} has nothing to merge: its export is a whole model already."
            if not method.adapter
            else f"Method {method.name} cannot be merged into the base weights.",
            "Leave --merge out.",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PlanError(f"{target} exists and is not empty.", "Choose a new folder.")
    kind = "merged" if merge else "adapter" if method.adapter else "full"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(run_dir, record, partial, merge=merge)
        difference = verify(run_dir, record, partial)
        write_text(partial / "README.md", model_card(record, kind, difference))
        for path in partial.iterdir():
            share(path)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "path": str(target),
        "kind": kind,
        "max_logit_difference": difference,
        "tolerance": _tolerance(record),
    }


def verify(run_dir: Path, record: RunRecord, folder: Path) -> float:
    """Load a written model with plain transformers and peft and compare it with the trained one.

    Args:
        run_dir: Of the run; its probe.safetensors holds rows and the trained model's logits.
        record: Of the run.
        folder: What was written.

    Returns:
        The largest difference of a logit.

    Raises:
        ExportError: A tensor is empty, or the logits differ by more than the tolerance.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if 0 in file.get_slice(name).get_shape():
                    raise ExportError(f"{path.name} holds the empty tensor {name}.")
    probe = load_file(run_dir / "probe.safetensors")
    model = hf.load_folder(folder, plugin.tasks()[record.config["task"]["name"]])
    bf16 = record.config["train"]["bf16"]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        wanted = probe.pop("logits")
        logits = model(**probe).logits.float()
    if logits.shape != wanted.shape:
        raise ExportError(
            f"The written model gives logits {tuple(logits.shape)}, the trained one "
            f"{tuple(wanted.shape)}."
        )
    # What the model says of padding depends on how attention treats it, and nobody asks.
    aligned = wanted.shape[:2] == probe["attention_mask"].shape
    used = probe["attention_mask"].bool() if aligned and wanted.dim() == 3 else slice(None)
    difference = float((logits[used] - wanted[used]).abs().max())
    allowed = _tolerance(record) * max(1.0, float(wanted[used].abs().max()))
    if not difference <= allowed:
        raise ExportError(
            f"The written model's logits differ from the trained model's by {difference:.2g}; "
            f"{allowed:.2g} is allowed. It is not the model that was trained.",
            "Nothing was kept. Check that the base model has not changed since training.",
        )
    return difference


def _tolerance(record: RunRecord) -> float:
    exact = record.config["model"]["dtype"] == "float32" and not record.config["train"]["bf16"]
    return TOLERANCE if exact else BF16_TOLERANCE


def _write(run_dir: Path, record: RunRecord, folder: Path, *, merge: bool) -> None:
    config = parse(record.config)
    task = plugin.tasks()[config.task.name]
    labels = record.data.labels
    method = plugin.methods()[config.method.name]
    stored = method.quantization(config.method)
    base = hf.load_model(config.model, task, labels, seed=config.train.seed, quantization=stored)
    # Frozen random parts of an adapter, and what it took from the base, must be those of the run.
    torch.manual_seed(config.train.seed)
    module = method.attach(base, config.method, task)
    _load_trained(run_dir, record, module)
    if merge:
        module = module.merge_and_unload()  # type: ignore[operator]  # PEFT's
    hf.save_folder(module, config.model, folder, config.data.template)


def _load_trained(run_dir: Path, record: RunRecord, module: nn.Module) -> None:
    folder = checkpoint.step_dir(run_dir, int(record.best.get("step") or record.final["step"]))
    problem = checkpoint.verify(folder, record.config_hash)
    if problem is not None:
        raise ExportError(
            f"The checkpoint {folder} cannot be exported: {problem}.",
            "Train again with --fresh, or restore the file.",
        )
    read = checkpoint.read_state(folder)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                tensors: Mapping[str, torch.Tensor] = read(name)
                parameter.copy_(tensors["param"])
