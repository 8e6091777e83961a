"""A trained model in one process, as much of an engine as evaluation asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class InferenceEngine:
    """Forward passes only, on a graphics card where there is one.

    Args:
        module: A trained model.
        bf16: Compute in bfloat16, as it was trained.
    """

    rank = 0
    world_size = 1

    def __init__(self, module: nn.Module, *, bf16: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = module.to(self.device)
        self._bf16 = bf16

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of a batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            inputs = {key: batch[key].to(self.device) for key in batch if key != "labels"}
            logits: torch.Tensor = self.module(**inputs).logits
        return logits

    def gather(self, value: Any) -> list[Any]:
        """Return [value]: there is one rank."""
        return [value]
