"""Event files for TensorBoard, in the run's own folder `tensorboard`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from distft.plugin import Ending, Tracked, Tracker


class _Events:
    id = None

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run.run_dir / "tensorboard")
        config = json.dumps(run.config, indent=2, ensure_ascii=False)
        self._writer.add_text("config", f"```json\n{config}\n```")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, ending: Ending, summary: Mapping[str, float]) -> None:
        for name, value in summary.items():
            self._writer.add_scalar(name, value)
        self._writer.add_text("status", ending)
        self._writer.close()


TRACKER = Tracker(
    name="tensorboard",
    summary="event files in the run directory: tensorboard --logdir runs",
    package="tensorboard",
    open=_Events,
)
