"""One process and plain torch: the numerical reference the other engines are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distft.config_sections import TrainConfig
from distft.hf import Gather
from distft.plan import Plan
from distft.train.engine import StateReader, fingerprint
from distft.train.optimizer import build_optimizer, state_keys


class TorchEngine:
    """An Engine of one process (see `distft.train.engine`)."""

    rank = 0
    world_size = 1

    def __init__(
        self, build: Callable[[Gather | None], nn.Module], train: TrainConfig, plan: Plan
    ) -> None:
        self.device = torch.device(plan.device)
        self.module = build(None).to(self.device)
        self._train = train
        self._optimizer = build_optimizer(self.module, train, plan.learning_rate)
        self._trainable = [p for p in self.module.parameters() if p.requires_grad]

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._train.bf16):
            logits: torch.Tensor = self.module(
                input_ids=batch["input_ids"].to(self.device),
                attention_mask=batch["attention_mask"].to(self.device),
            ).logits
        return logits

    def backward(self, loss_sum: torch.Tensor, step_targets: int) -> None:
        """Add the gradient of loss_sum / step_targets."""
        (loss_sum / step_targets).backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights, clear the gradients; return the norm before clipping."""
        limit = self._train.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._trainable, limit)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values: there is one rank."""
        return list(values)

    def gather(self, value: Any) -> list[Any]:
        """Return [value]: there is one rank."""
        return [value]

    def state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Yield each trainable parameter's weights and optimizer tensors."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                tensors = {"param": parameter.detach()}
                stored = self._optimizer.state.get(parameter, {})
                tensors |= {key: stored[key] for key in state_keys(self._train) if key in stored}
                yield name, {k: v.to("cpu", torch.float32, copy=True) for k, v in tensors.items()}

    def load_state(self, read: StateReader, step: int, *, optimizer: bool = True) -> None:
        """Put weights and, where asked, optimizer tensors back."""
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            tensors = read(name)
            with torch.no_grad():
                parameter.copy_(tensors["param"])
            if optimizer:
                stored = self._optimizer.state[parameter]
                for key in state_keys(self._train):
                    stored[key] = tensors[key].to(parameter.device, parameter.dtype, copy=True)
                if self._train.optim == "adamw_torch":
                    stored["step"] = torch.tensor(float(step))

    def fingerprints(self) -> dict[str, float]:
        """Return a number per parameter that changes with it."""
        return {name: fingerprint(p) for name, p in self.module.named_parameters()}
