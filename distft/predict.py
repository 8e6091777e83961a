"""A finished run on rows: metrics of a split or a file, and predictions as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft import hf, overlap, plugin
from distft.config import RunConfig
from distft.config_file import parse
from distft.data import files, resolve, source
from distft.data.reread import split_readings
from distft.data.shards import Sample, open_split
from distft.data.survey import Reading, RowReader
from distft.data.tokenize import encode_row
from distft.errors import ConfigError, DataError, PlanError
from distft.plugin import EncodeContext, Encoded, Row, Task, UnusableRow
from distft.records import RunRecord, read_record, write_text
from distft.train.batch import make_collator
from distft.train.evaluate import Rows, evaluate
from distft.train.inference_engine import InferenceEngine

BATCH_ROWS = 16

Progress = Callable[[int, int], None]
"""(rows answered, rows in all)."""


@dataclass(frozen=True)
class _Run:
    """A finished run, loaded."""

    record: RunRecord
    config: RunConfig
    task: Task
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


def evaluate_run(
    run_dir: Path,
    data: str | None = None,
    *,
    generate: bool = False,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Return the metrics of a run's model.

    Args:
        run_dir: A finished run.
        data: A file of rows in the run's own format; default: the run's test rows.
        generate: Also write an answer to every row, as `predict` does, and compare it with the
            row's own; of a conversation the last answer, all before it being the prompt.
        progress: Called as answers are written.

    Returns:
        `run, data, rows, skipped {reason: rows}` and `metrics`, names prefixed `eval_`; with
        `generate` also those of `distft.overlap.compare`, `scored_with` (which tokenizers), and
        `unanswered {reason: rows}`.

    Raises:
        ConfigError: The directory is no finished run.
        DataError: The file is wrong, or a label in it is unknown to the model.
        PlanError: Answers were asked for, and the task writes none.
    """
    if generate:
        _check_writes(_finished(run_dir)[1])
    run = _load(run_dir)
    skipped: dict[str, int] = {}
    where = data or "test rows of the run"
    rows: Rows
    found: list[Row] = []
    if data is None and not generate:
        rows = open_split(_prepared(run), "test")
    else:
        readings = (
            split_readings(run.config, "test", run.record.data.manifest)
            if data is None
            else _readings(run.config, data, training=True)
        )
        pairs = list(_encoded(run, readings, skipped))
        if not pairs:
            raise DataError(f"No row of {where} can be evaluated: {_first(skipped)}.")
        found = [row for row, _ in pairs]
        rows = _Encoded([encoded for _, encoded in pairs], run.task)
    metrics = evaluate(
        run.engine,
        run.task,
        rows,
        run.context.labels,
        batch_size=run.config.train.per_device_eval_batch_size,
        collate=make_collator(run.config, run.task, run.context.labels),
    )
    document = {
        "run": str(run_dir),
        "data": where,
        "rows": sum(rows.row_groups),
        "skipped": skipped,
        "metrics": metrics,
    }
    if generate:
        compared, unanswered = _compared(run, found, progress)
        document["scored_with"] = compared.pop("scored_with")
        document["unanswered"] = unanswered
        metrics |= {f"eval_{name}": value for name, value in compared.items()}
    return document


def _check_writes(config: RunConfig) -> None:
    if plugin.tasks()[config.task.name].reference is None:
        able = [task.name for task in plugin.tasks().values() if task.reference is not None]
        raise PlanError(
            f"Task {config.task.name} has no written answers to compare; "
            f"those that do: {', '.join(able)}.",
            "Leave --generate out.",
        )


def _compared(
    run: _Run, rows: Sequence[Row], progress: Progress
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return how near the model's answers are to the rows' own, and why some have none."""
    assert run.task.reference is not None
    unanswered: dict[str, int] = {}
    said: list[str] = []
    wanted: list[str] = []
    for start in range(0, len(rows), BATCH_ROWS):
        pairs = [run.task.reference(row) for row in rows[start : start + BATCH_ROWS]]
        answers = _answers(run, [asked for asked, _ in pairs])
        for (_, reference), answer in zip(pairs, answers, strict=True):
            if "error" in answer:
                unanswered[answer["error"]] = unanswered.get(answer["error"], 0) + 1
            else:
                said.append(answer["prediction"])
                wanted.append(reference)
        progress(min(start + BATCH_ROWS, len(rows)), len(rows))
    if not said:
        raise DataError(f"No row can be answered: {_first(unanswered)}.")
    return overlap.compare(said, wanted), unanswered


def predict(
    run_dir: Path,
    data: str,
    target: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write a prediction for every row of a file, in its order.

    Args:
        run_dir: A finished run.
        data: Rows in the run's own format; labels and answers may be missing.
        target: JSON lines: the row's own fields and `prediction` (and `scores`), or `error`.
        progress: Called as rows are answered.

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
    total = sum(1 for _ in _readings(_finished(run_dir)[1], data, training=False))
    run = _load(run_dir)
    lines: list[str] = []
    errors = 0
    pending: list[Reading] = []

    def flush() -> None:
        nonlocal errors
        rows = [reading.value for reading in pending if reading.value is not None]
        answers = iter(_answers(run, rows) if rows else [])
        for reading in pending:
            answer = {"error": reading.error} if reading.value is None else next(answers)
            if reading.value is not None and "error" in answer:
                answer["error"] = f"{reading.path}:{reading.row}: {answer['error']}"
            errors += "error" in answer
            fields = {**(reading.raw or {}), **answer}
            # A date of a Parquet file is written as text.
            lines.append(json.dumps(fields, ensure_ascii=False, default=str))
        pending.clear()
        progress(len(lines), total)

    for reading in _readings(run.config, data, training=False):
        pending.append(reading)
        if len(pending) == BATCH_ROWS:
            flush()
    flush()
    write_text(target, "".join(f"{line}\n" for line in lines), verbatim=True)
    return {
        "run": str(run_dir),
        "input": data,
        "output": str(target),
        "rows": len(lines),
        "errors": errors,
    }


def _answers(run: _Run, rows: Sequence[Row]) -> list[dict[str, Any]]:
    model, tokenizer = run.engine.module, run.tokenizer
    return run.task.predict(model, tokenizer, rows, run.context, run.config.task)


def _finished(run_dir: Path) -> tuple[RunRecord, RunConfig]:
    record = read_record(run_dir)
    if record.status != "completed":
        raise ConfigError(
            f"{run_dir} has not finished: its status is {record.status}.",
            "Run the same `distft train` command again; it continues.",
        )
    return record, parse(record.config)


def _load(run_dir: Path) -> _Run:
    record, config = _finished(run_dir)
    task = plugin.tasks()[config.task.name]
    return _Run(
        record=record,
        config=config,
        task=task,
        engine=InferenceEngine(hf.load_folder(run_dir / "model", task), bf16=config.train.bf16),
        tokenizer=hf.load_tokenizer(config.model, config.data.template),
        context=resolve.context(config, record.data.labels),
    )


def _prepared(run: _Run) -> Path:
    root = Path(run.config.output_dir) / "prepared" / run.record.data.manifest
    if not root.is_dir():
        raise DataError(
            f"The run's prepared data {root} is gone.",
            "Name a file with --data, or run `distft prepare` with the run's config.yaml.",
        )
    return root


def _readings(config: RunConfig, data: str, *, training: bool) -> Iterator[Reading]:
    assert config.data.format is not None
    form = plugin.formats()[config.data.format]
    columns, clean = resolve.columns_of(form, config.data), config.data.clean
    reader = RowReader(form.name, columns, training, clean)
    for file in source.scan(files.expand(data, "data")):
        for chunk in file.chunks:
            yield from reader.read(chunk)


def _encoded(
    run: _Run, readings: Iterator[Reading], skipped: dict[str, int]
) -> Iterator[tuple[Row, Encoded]]:
    """Yield the rows that can be evaluated, and count the others."""
    task = run.task
    for reading in readings:
        outcome: Encoded | UnusableRow | str = reading.reason
        if reading.value is not None:
            for label in task.classes(reading.value) if task.classes else ():
                if label not in run.context.labels:
                    raise DataError(
                        f"{reading.path}:{reading.row}: the label {label!r} was never seen in "
                        f"training; known: {', '.join(run.context.labels)}.",
                        "Mend the row, or train with rows of this label.",
                    )
            outcome = encode_row(reading.value, task, run.tokenizer, run.context)
        if reading.value is not None and isinstance(outcome, Encoded):
            yield reading.value, outcome
        else:
            skipped[str(outcome)] = skipped.get(str(outcome), 0) + 1


def _first(skipped: dict[str, int]) -> str:
    return max(skipped, key=lambda reason: skipped[reason], default="it holds no row")
