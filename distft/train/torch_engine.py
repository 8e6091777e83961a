"""One process and plain torch: the numerical reference the other engines are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distft import plugin
from distft.config import RunConfig
from distft.heads import Gather
from distft.plan import Plan
from distft.train.engine import StateReader, fingerprint
from distft.train.optimizer import build_optimizer, set_rate, state_keys


class TorchEngine:
    """An Engine of one process (see `distft.train.engine`)."""

    rank = 0
    world_size = 1

    def __init__(
        self, build: Callable[[Gather | None], nn.Module], config: RunConfig, plan: Plan
    ) -> None:
        self.device = torch.device(plan.device)
        self.module = build(None).to(self.device)
        self._train, self._steps = config.train, plan.total_steps
        self._optimizer = build_optimizer(self.module, config, plan.learning_rate)
        make = plugin.methods()[config.method.name].allocator
        self._allocator = make and make(self.module, config.method, plan.total_steps)
        self._trainable = [p for p in self.module.parameters() if p.requires_grad]

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._train.bf16):
            inputs = {key: batch[key].to(self.device) for key in batch if key != "labels"}
            logits: torch.Tensor = self.module(**inputs).logits
        return logits

    def backward(self, loss_sum: torch.Tensor, step_targets: int, *, last: bool) -> None:
        """Add the gradient of loss_sum / step_targets."""
        (loss_sum / step_targets).backward()

    def step(self, learning_rate: float, step: int) -> float:
        """Clip, update the weights, clear the gradients; return the norm before clipping."""
        if self._allocator:
            self._allocator.penalty().backward()
        limit = self._train.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._trainable, limit)
        set_rate(self._optimizer.param_groups, learning_rate, step / self._steps)
        self._optimizer.step()
        if self._allocator:
            self._allocator.after_step(step)
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
                if self._allocator:
                    tensors |= self._allocator.state(name)
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
                if self._allocator:
                    self._allocator.load_state(name, tensors)

    def fingerprints(self) -> dict[str, float]:
        """Return a number per parameter that changes with it."""
        return {name: fingerprint(p) for name, p in self.module.named_parameters()}

    def close(self) -> None:
        """Do nothing: all of it is in memory."""
