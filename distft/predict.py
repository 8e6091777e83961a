"""A finished run on rows: metrics of a split or a file, and predictions as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft import hf, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.data import resolve, source
from distft.data.shards import Sample, open_split
from distft.data.survey import Reading, RowReader
from distft.data.tokenize import encode_row
from distft.errors import ConfigError, DataError
from distft.plugin import EncodeContext, Encoded, Task
from distft.records import RunRecord, read_record, write_text
from distft.train.batch import make_collator
from distft.train.evaluate import Rows, evaluate
from distft.train.inference_engine import InferenceEngine

BATCH_ROWS = 16


@dataclass(frozen=True)
class _Run:
    """A finished run, loaded."""

    record: RunRecord
    config: RunConfig
    engine: InferenceEngine
    tokenizer: Any
    context: EncodeContext


class _Encoded:
    """Encoded rows as evaluation reads them."""

    def __init__(self, rows: Sequence[Encoded], task: Task) -> None:
        import numpy as np

        self.row_groups = [len(rows)]
        kind = np.float32 if task.labels == "vector" else np.int32
        self._samples = [
            Sample(i, np.array(row.input_ids, np.int32), np.array(row.labels, kind), row.second)
            for i, row in enumerate(rows)
        ]

    def read(self, ids: Sequence[int]) -> list[Sample]:
        return [self._samples[i] for i in ids]


def evaluate_run(run_dir: Path, data: str | None = None) -> dict[str, Any]:
    """Return the metrics of a run's model.

    Args:
        run_dir: A finished run.
        data: A file of rows in the run's own format; default: the run's test rows.

    Returns:
        `run, data, rows, skipped {reason: rows}` and `metrics`, names prefixed `eval_`.

    Raises:
        ConfigError: The directory is no finished run.
        DataError: The file is wrong, or a label in it is unknown to the model.
    """
    run = _load(run_dir)
    skipped: dict[str, int] = {}
    task = plugin.tasks()[run.config.task.name]
    rows: Rows
    if data is None:
        rows = open_split(_prepared(run), "test")
    else:
        rows = _Encoded(list(_encoded(run, data, skipped)), task)
        if not sum(rows.row_groups):
            raise DataError(f"No row of {data} can be evaluated: {_first(skipped)}.")
    metrics = evaluate(
        run.engine,
        task,
        rows,
        run.context.labels,
        batch_size=run.config.train.per_device_eval_batch_size,
        collate=make_collator(run.config, task, run.context.labels),
    )
    where = data or "test rows of the run"
    return {
        "run": str(run_dir),
        "data": where,
        "rows": sum(rows.row_groups),
        "skipped": skipped,
        "metrics": metrics,
    }


def predict(run_dir: Path, data: str, target: Path) -> dict[str, Any]:
    """Write a prediction for every row of a file, in its order.

    Args:
        run_dir: A finished run.
        data: Rows in the run's own format; labels and answers may be missing.
        target: JSON lines: the row's own fields and `prediction` (and `scores`), or `error`.

    Returns:
        `run, input, output, rows, errors`.

    Raises:
        ConfigError: The directory is no finished run, or the target exists.
        DataError: The file is wrong.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already.", "Name a file that does not.")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"The folder of {target} does not exist.", "Make it first.")
    run = _load(run_dir)
    task = plugin.tasks()[run.config.task.name]
    lines: list[str] = []
    errors = 0
    pending: list[Reading] = []

    def flush() -> None:
        nonlocal errors
        rows = [reading.value for reading in pending if reading.value is not None]
        context, config = run.context, run.config.task
        module, tokenizer = run.engine.module, run.tokenizer
        answers = iter(task.predict(module, tokenizer, rows, context, config) if rows else [])
        for reading in pending:
            answer = {"error": reading.error} if reading.value is None else next(answers)
            if reading.value is not None and "error" in answer:
                answer["error"] = f"{reading.path}:{reading.row}: {answer['error']}"
            errors += "error" in answer
            lines.append(json.dumps({**(reading.raw or {}), **answer}, ensure_ascii=False))
        pending.clear()

    for reading in _readings(run, data, training=False):
        pending.append(reading)
        if len(pending) == BATCH_ROWS:
            flush()
    flush()
    write_text(target, "".join(f"{line}\n" for line in lines))
    return {
        "run": str(run_dir),
        "input": data,
        "output": str(target),
        "rows": len(lines),
        "errors": errors,
    }


def _load(run_dir: Path) -> _Run:
    record = read_record(run_dir)
    if record.status != "completed":
        raise ConfigError(
            f"{run_dir} has not finished: its status is {record.status}.",
            "Run the same `distft train` command again; it continues.",
        )
    config = parse(record.config)
    task = plugin.tasks()[config.task.name]
    return _Run(
        record=record,
        config=config,
        engine=InferenceEngine(hf.load_folder(run_dir / "model", task), bf16=config.train.bf16),
        tokenizer=hf.load_tokenizer(config.model),
        context=EncodeContext(resolve.cutoff_len(config), record.data.labels),
    )


def _prepared(run: _Run) -> Path:
    root = Path(run.config.output_dir) / "prepared" / run.record.data.manifest
    if not root.is_dir():
        raise DataError(
            f"The run's prepared data {root} is gone.",
            "Name a file with --data, or run `distft prepare` with the run's config.yaml.",
        )
    return root


def _readings(run: _Run, data: str, *, training: bool) -> Iterator[Reading]:
    assert run.config.data.format is not None
    form = plugin.formats()[run.config.data.format]
    reader = RowReader(form.name, resolve.columns_of(form, run.config.data), training)
    for file in source.scan(source.expand(data, "data")):
        for chunk in file.chunks:
            yield from reader.read(chunk)


def _encoded(run: _Run, data: str, skipped: dict[str, int]) -> Iterator[Encoded]:
    task = plugin.tasks()[run.config.task.name]
    for reading in _readings(run, data, training=True):
        outcome: Encoded | str = reading.reason
        if reading.value is not None:
            for label in task.classes(reading.value) if task.classes else ():
                if label not in run.context.labels:
                    raise DataError(
                        f"{reading.path}:{reading.row}: the label {label!r} was never seen in "
                        f"training; known: {', '.join(run.context.labels)}.",
                        "Mend the row, or train with rows of this label.",
                    )
            outcome = encode_row(reading.value, task, run.tokenizer, run.context)
        if isinstance(outcome, Encoded):
            yield outcome
        else:
            skipped[outcome] = skipped.get(outcome, 0) + 1


def _first(skipped: dict[str, int]) -> str:
    return max(skipped, key=lambda reason: skipped[reason], default="it holds no row")
