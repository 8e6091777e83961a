"""Metrics to TensorBoard, beside metrics.jsonl, where `report_to` asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distft.errors import ConfigError


class TensorBoard:
    """Writes the lines of metrics.jsonl as scalars; a resumed run hides what it does again.

    Args:
        run_dir: Of the run; the event files go to its `tensorboard` folder.
        step: What the run continues from; None for its beginning.

    Raises:
        ConfigError: The tensorboard package is not installed.
    """

    def __init__(self, run_dir: Path, step: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "report_to: tensorboard is not installed.", "pip install 'distft[tracking]'"
            ) from error
        first = 0 if step is None else step + 1
        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=first)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of a line at its step."""
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(key, value, line["step"])
        self._writer.flush()
