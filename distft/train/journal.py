"""What a run writes while it trains: metrics.jsonl (rank 0) and the sample ids of every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distft.plugin import Ending, Tracked, Tracker
from distft.records import write_text
from distft.redact import hidden
from distft.train.tracking import Delivery


class Journal:
    """Append-only JSON lines that a resumed run cuts back to the step it continues from.

    A context: at its end the trackers are told how the run ended.

    Args:
        run_dir: Of the run.
        rank: Which of the workers writes.
        step: What the run continues from; None for its beginning.
        trackers: Told the metrics too, those of earlier attempts included.
        tracked: What they are told of the run.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        step: int | None,
        trackers: Sequence[Tracker] = (),
        tracked: Tracked | None = None,
    ) -> None:
        self._metrics = run_dir / "metrics.jsonl" if rank == 0 else None
        self._samples = run_dir / "logs" / f"samples-rank-{rank:05d}.jsonl"
        self._samples.parent.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            # Of all ranks: an earlier attempt may have had more. No rank writes before the first
            # step, which none takes without rank 0.
            for path in (run_dir / "metrics.jsonl", *self._samples.parent.glob("samples-*.jsonl")):
                _cut(path, step)
        self._place: dict[str, Any] = {"step": step or 0, "samples": 0}
        self._result: Mapping[str, Any] = {}
        self._deliveries: list[Delivery] = []
        if rank == 0 and tracked is not None:
            self._deliveries = [Delivery(each, tracked, self._note) for each in trackers]
            for line in _lines(run_dir / "metrics.jsonl"):
                self._deliver(line)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append a line of metrics.jsonl; only rank 0 does."""
        if self._metrics is not None:
            _append(self._metrics, line)
            self._deliver(line)

    def result(self, result: Mapping[str, Any]) -> None:
        """Remember what the run came to, for the trackers."""
        self._result = result

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending: Ending = "completed"
        if kind is not None:
            # A search closes the generator of a trial that is stopped at a rung.
            ending = "stopped" if issubclass(kind, GeneratorExit) else "failed"
        for each in self._deliveries:
            each.end(ending, self._result)

    def _deliver(self, line: Mapping[str, Any]) -> None:
        self._place = {key: line[key] for key in ("step", "samples") if key in line}
        for each in self._deliveries:
            each.put(line)

    def _note(self, text: str) -> None:
        if self._metrics is not None:
            _append(self._metrics, {**self._place, "note": text})

    def samples(self, step: int, sample_ids: Sequence[int]) -> None:
        """Append the ids this rank trained on in an optimizer step."""
        _append(self._samples, {"step": step, "sample_ids": list(sample_ids)})


def _append(path: Path, line: Mapping[str, Any]) -> None:
    # One write per line: a reader that follows the file sees whole lines.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(hidden(line), ensure_ascii=False) + "\n")


def _lines(path: Path) -> list[Mapping[str, Any]]:
    texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(text) for text in texts]


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
