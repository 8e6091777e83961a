"""AdaLoRA: LoRA that moves its ranks to the layers where they matter most while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from distft.plugin import Allocator, Method, Task, VariantConfig
from distft.space import Range

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Share = Annotated[float, Field(ge=0, lt=1)]
Momentum = Annotated[float, Field(gt=0, lt=1)]


class AdaloraConfig(VariantConfig):
    """Keys of `method: {name: adalora}`; PEFT's names."""

    name: str = "adalora"
    """The method."""
    target_r: Annotated[int, Field(ge=1)] = 8
    """Rank that is left on average."""
    init_r: Annotated[int, Field(ge=2)] = 12
    """Rank of every layer at the start; above target_r."""
    tinit: Share = 0.1
    """Share of the run's steps before the first rank goes."""
    tfinal: Share = 0.3
    """Share of the run's steps, at its end, in which no rank goes."""
    deltaT: Annotated[int, Field(ge=1)] = 1  # noqa: N815 - PEFT's name
    """Steps from one allocation to the next."""
    beta1: Momentum = 0.85
    """Smooths the importance of a weight over the steps."""
    beta2: Momentum = 0.85
    """Smooths its uncertainty."""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the penalty that keeps the factors orthogonal."""
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    """The update is scaled by lora_alpha / init_r."""
    lora_dropout: Share = 0.0
    """Dropout on the input of the update."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, or names of linear modules, such as [q_proj, v_proj]."""

    @model_validator(mode="after")
    def _budget_falls(self) -> Self:
        if self.init_r <= self.target_r:
            raise ValueError(f"init_r must be above target_r, which is {self.target_r}")
        if self.tinit + self.tfinal >= 1:
            raise ValueError("tinit and tfinal must leave a share of the steps between them")
        return self


def _attach(model: PreTrainedModel, config: VariantConfig, task: Task) -> nn.Module:
    import peft

    from distft import adapter

    assert isinstance(config, AdaloraConfig)
    # The run's length is known to the allocator, which sets the schedule.
    keys = config.model_dump(exclude={"name", "tinit", "tfinal"})
    wanted = peft.AdaLoraConfig(total_step=1, **keys)
    return adapter.attach(model, wanted, task)


class _Ranks:
    """PEFT's allocation, with a state that can be saved."""

    def __init__(self, module: nn.Module, config: VariantConfig, total_steps: int) -> None:
        assert isinstance(config, AdaloraConfig)
        adapted: Any = module
        self._tuner, self._settings = adapted.base_model, adapted.peft_config["default"]
        self._settings.total_step = total_steps
        self._settings.tinit = int(config.tinit * total_steps)
        self._settings.tfinal = int(config.tfinal * total_steps)
        named = list(module.named_parameters())
        self._factors = [
            (".lora_A." in n, p) for n, p in named if ".lora_A." in n or ".lora_B." in n
        ]

    def penalty(self) -> torch.Tensor:
        """Return how far the factors are from orthogonal, as PEFT's forward pass has it."""
        import torch

        distances = []
        for rows, factor in self._factors:
            product = factor @ factor.T if rows else factor.T @ factor
            distances.append(torch.linalg.norm(product - torch.eye(len(product)).to(product)))
        return float(self._settings.orth_reg_weight) * torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        """Weigh the ranks by their gradients and set the least important to zero."""
        self._tuner.update_and_allocate(step)

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """Return the smoothed importance of a weight and, of singular values, which are kept."""
        import torch

        ranks, inner = self._tuner.rankallocator, self._inner(name)
        found: dict[str, torch.Tensor] = {}
        if inner in ranks.exp_avg_ipt:
            found = {
                "exp_avg_ipt": ranks.exp_avg_ipt[inner],
                "exp_avg_unc": ranks.exp_avg_unc[inner],
            }
        if inner in (self._settings.rank_pattern or {}):
            found["kept"] = torch.tensor(self._settings.rank_pattern[inner], dtype=torch.float32)
        return found

    def load_state(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put it back."""
        import torch

        ranks, inner = self._tuner.rankallocator, self._inner(name)
        if "exp_avg_ipt" in tensors:
            ranks.exp_avg_ipt[inner] = tensors["exp_avg_ipt"].to(self._factors[0][1].device)
            ranks.exp_avg_unc[inner] = tensors["exp_avg_unc"].to(self._factors[0][1].device)
            # The last step's own importance is written before it is read.
            ranks.ipt[inner] = torch.zeros_like(ranks.exp_avg_ipt[inner])
        if "kept" in tensors:
            pattern = self._settings.rank_pattern or {}
            self._settings.rank_pattern = pattern | {inner: tensors["kept"].bool().tolist()}

    @staticmethod
    def _inner(name: str) -> str:
        return name.removeprefix("base_model.model.")


def _allocator(module: nn.Module, config: VariantConfig, total_steps: int) -> Allocator:
    return _Ranks(module, config, total_steps)


def _refuses(config: VariantConfig) -> Mapping[str, str]:
    reason = (
        "the step of DeepSpeed clears the gradients that the ranks are weighed by, and the float32 "
        "weights it keeps undo what was set to zero"
    )
    settings = ("engine=deepspeed", *(f"cluster.zero_stage={stage}" for stage in (1, 2, 3)))
    return dict.fromkeys(settings, reason)


METHOD = Method(
    name="adalora",
    summary="LoRA that gives its ranks to the layers that need them (average rank)",
    source="Zhang et al. 2023, arXiv 2303.10512",
    config=AdaloraConfig,
    learning_rate=1e-3,
    space={
        "train.learning_rate": Range(1e-4, 1e-2, log=True),
        "method.target_r": (2, 4, 8),
    },
    attach=_attach,
    adapter=True,
    merges=True,
    refuses=_refuses,
    allocator=_allocator,
)
