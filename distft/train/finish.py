"""The end of a run: the best weights, the test rows, the proof of what moved, eval.json."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import nn

from distft.errors import TrainError
from distft.records import Metrics, write_json
from distft.train import checkpoint
from distft.train.checkpoint import Position
from distft.train.engine import Engine
from distft.train.evaluate import evaluate
from distft.train.job import Job
from distft.train.memory import peak_memory_bytes

PROBE_ROWS = 4


def evaluate_split(job: Job, engine: Engine, split: str) -> Metrics:
    """Return the metrics of a split; called by all ranks.

    Args:
        job: Of the run.
        engine: What is evaluated.
        split: `eval` or `test`.

    Returns:
        Names prefixed `eval_`.
    """
    size = job.config.train.per_device_eval_batch_size
    reader = job.readers[split]
    return evaluate(engine, job.task, reader, job.labels, batch_size=size, collate=job.collate)


def check_changed(engine: Engine, before: dict[str, float]) -> list[str]:
    """Check that what was declared trainable moved and nothing else did; called by all ranks.

    Args:
        engine: After training.
        before: Its fingerprints before.

    Returns:
        Names of declared parameters that did not move.

    Raises:
        TrainError: A frozen parameter moved, or no declared one did.
    """
    declared = {name for name, p in engine.module.named_parameters() if p.requires_grad}
    after = engine.fingerprints()
    moved = {
        name for rank in engine.gather({n for n in after if after[n] != before[n]}) for name in rank
    }
    if moved - declared:
        raise TrainError(f"A frozen parameter changed while training: {min(moved - declared)}.")
    if not moved:
        raise TrainError(
            "No declared parameter changed while training.", "Raise train.learning_rate."
        )
    return sorted(declared - moved)


def finish(job: Job, engine: Engine, position: Position) -> Metrics:
    """Go back to the best weights, score the test rows, record probe logits, write eval.json.

    A search trial keeps no weights: only eval.json is written, without test rows.

    Args:
        job: Of the run.
        engine: After the last step.
        position: Where it stands.

    Returns:
        What eval.json holds.

    Raises:
        TrainError: The best checkpoint was damaged meanwhile.
    """
    test: dict[str, Metrics] = {}
    if job.rungs is None:
        _back_to_best(job, engine, position)
        test = {"base": position.base_test, "tuned": evaluate_split(job, engine, "test")}
        _probe(job, engine)
    peaks = engine.gather(peak_memory_bytes())
    trainable = sum(_size(p) for p in engine.module.parameters() if p.requires_grad)
    result = {
        "step": position.step,
        "samples": position.samples,
        "tokens": position.tokens,
        "train_s": position.train_s,
        "tokens_per_s": position.tokens / position.train_s if position.train_s else 0.0,
        "padding": 1 - position.tokens / position.positions if position.positions else 0.0,
        "peak_memory_bytes": max(peaks),
        "trainable_params": trainable,
        "best_step": position.best_step or position.step,
        "baseline": position.baseline,
        "final": position.latest,
        "best": position.best,
        "test": test,
    }
    if engine.rank == 0:
        write_json(job.run_dir / "eval.json", result)
    engine.gather(None)
    return result


def _back_to_best(job: Job, engine: Engine, position: Position) -> None:
    if position.best_step not in (None, position.step):
        best = checkpoint.step_dir(job.run_dir, position.best_step)
        problem = engine.gather(checkpoint.verify(best, job.config_hash))[0]
        if problem is not None:
            raise TrainError(f"The best checkpoint {best.name} cannot be used: {problem}.")
        engine.load_state(checkpoint.read_state(best), position.best_step, optimizer=False)


def _size(parameter: nn.Parameter) -> int:
    # A partitioned parameter holds a part only; DeepSpeed keeps the number of the whole.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _probe(job: Job, engine: Engine) -> None:
    """Record what the trained model says of a few rows, for every later export to be held to."""
    reader = job.readers["test"]
    rows = reader.read(range(min(PROBE_ROWS, sum(reader.row_groups))))
    batch = job.collate(rows)
    engine.module.eval()
    with torch.no_grad():
        logits = engine.forward(batch).float().cpu().contiguous()
    engine.module.train()
    if engine.rank == 0:
        del batch["labels"]
        save_file({**batch, "logits": logits}, job.run_dir / "probe.safetensors")
