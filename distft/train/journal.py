"""What a run writes while it trains: metrics.jsonl (rank 0) and the sample ids of every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distft.records import write_text
from distft.train.tracking import TensorBoard


class Journal:
    """Append-only JSON lines that a resumed run cuts back to the step it continues from.

    Args:
        run_dir: Of the run.
        rank: Which of the workers writes.
        step: What the run continues from; None for its beginning.
        report_to: Trackers that get the metrics too.
    """

    def __init__(
        self, run_dir: Path, rank: int, step: int | None, report_to: Sequence[str] = ()
    ) -> None:
        self._metrics = run_dir / "metrics.jsonl" if rank == 0 else None
        self._samples = run_dir / "logs" / f"samples-rank-{rank:05d}.jsonl"
        self._samples.parent.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            # Of all ranks: an earlier attempt may have had more. No rank writes before the first
            # step, which none takes without rank 0.
            for path in (run_dir / "metrics.jsonl", *self._samples.parent.glob("samples-*.jsonl")):
                _cut(path, step)
        asked = rank == 0 and "tensorboard" in report_to
        self._board = TensorBoard(run_dir, step) if asked else None

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append a line of metrics.jsonl; only rank 0 does."""
        if self._metrics is not None:
            _append(self._metrics, line)
        if self._board is not None:
            self._board.write(line)

    def samples(self, step: int, sample_ids: Sequence[int]) -> None:
        """Append the ids this rank trained on in an optimizer step."""
        _append(self._samples, {"step": step, "sample_ids": list(sample_ids)})


def _append(path: Path, line: Mapping[str, Any]) -> None:
    # One write per line: a reader that follows the file sees whole lines.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _cut(path: Path, step: int | None) -> None:
    """Keep the lines up to a step: what came after it will be done again."""
    if not path.is_file():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if step is not None and line["step"] <= step:
            kept.append(text)
    write_text(path, "".join(f"{text}\n" for text in kept))
