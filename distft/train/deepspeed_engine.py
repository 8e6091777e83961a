"""DeepSpeed ZeRO 0-3 on an already initialised process group; the only importer of deepspeed.

Facts this file obeys, read in deepspeed 0.19.8: an unset `gradient_clipping` clips at 1.0;
`get_global_grad_norm()` is not filled at stage 0; optimizer states do not exist before a step.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distft.config import RunConfig
from distft.config_sections import TrainConfig
from distft.heads import Gather
from distft.plan import Plan
from distft.states import SWAP_GROUP, floats_a_step
from distft.train.engine import StateReader, fingerprint
from distft.train.optimizer import build_optimizer, set_rate, state_keys
from distft.train.partitions import Partitions
from distft.train.swap import SwapFolder


def ds_config(config: RunConfig, plan: Plan, swap: Path | None) -> dict[str, Any]:
    """Return DeepSpeed's configuration: a pure function of the plan, integers only, no "auto".

    Args:
        config: Of the run.
        plan: Of the run.
        swap: This rank's folder for what is offloaded to a disk.

    Returns:
        What `deepspeed.initialize(config=...)` takes.
    """
    micro = plan.per_device_train_batch_size
    zero: dict[str, Any] = {"stage": plan.zero_stage}
    if plan.offload != "none":
        zero["offload_optimizer"] = {"device": plan.offload, "pin_memory": plan.device == "cuda"}
    if plan.offload == "nvme":
        zero["offload_optimizer"] |= {
            "nvme_path": str(swap),
            "buffer_count": floats_a_step(config.train),
        }
        zero["sub_group_size"] = SWAP_GROUP
    if plan.zero_stage == 3:
        # The default, 100,000, would leave the small tensors of an adapter unpartitioned.
        zero["stage3_param_persistence_threshold"] = 0
    return {
        "train_batch_size": micro * plan.world_size,
        "train_micro_batch_size_per_gpu": micro,
        # Steps differ in their number of micro-batches: `backward` says which one is the last.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        # An empty list keeps gradients in float32 between ranks; only the computation is bfloat16.
        "torch_autocast": {
            "enabled": config.train.bf16 and config.model.dtype == "float32",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


class DeepSpeedEngine:
    """An Engine under DeepSpeed (see `distft.train.engine`)."""

    def __init__(
        self, build: Callable[[Gather | None], nn.Module], config: RunConfig, plan: Plan
    ) -> None:
        # Read when deepspeed is first imported; a CPU run on a machine with a GPU must say so.
        os.environ.setdefault("DS_ACCELERATOR", plan.device)
        os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
        # DeepSpeed builds its CPU kernels with the ninja beside this interpreter, which is not on
        # the PATH of a virtual environment that was never activated.
        scripts = str(Path(sys.executable).parent)
        if scripts not in os.environ.get("PATH", "").split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join((scripts, os.environ.get("PATH", "")))
        import deepspeed

        self._train: TrainConfig = config.train
        self._stage, self._steps = plan.zero_stage, plan.total_steps
        self._deepspeed = deepspeed
        backend = "nccl" if plan.device == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        disk = config.cluster.nvme_path if plan.offload == "nvme" else None
        self._swap = None if disk is None else SwapFolder(Path(disk))
        settings = ds_config(config, plan, None if self._swap is None else self._swap.path)
        # transformers keeps only a weak reference: it must live as long as loading does.
        loading = _hf_settings(settings) if self._stage == 3 else None
        module = build(self._gathered if self._stage == 3 else None)
        del loading
        if self._stage == 3 and config.model.dtype == "bfloat16":
            # Below stage 3 DeepSpeed does it by itself; there it refuses a mixture of types.
            for parameter in module.parameters():
                if parameter.dtype == torch.float32 and not hasattr(parameter, "ds_id"):
                    parameter.data = parameter.data.bfloat16()
        trainable = [p for p in module.parameters() if p.requires_grad]
        self._engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=trainable,
            optimizer=build_optimizer(module, config, plan.learning_rate),
            config=settings,
        )
        self.module: nn.Module = self._engine.module
        self.rank: int = torch.distributed.get_rank()
        self.world_size: int = torch.distributed.get_world_size()
        self._trainable = trainable
        self._partitions = Partitions(self._engine.optimizer) if self._stage == 3 else None

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of a micro-batch."""
        inputs = {key: batch[key].to(self._engine.device) for key in batch if key != "labels"}
        logits: torch.Tensor = self._engine(**inputs).logits
        return logits

    def backward(self, loss_sum: torch.Tensor, step_targets: int, *, last: bool) -> None:
        """Add the gradient of loss_sum / step_targets; DeepSpeed averages over ranks."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss_sum * (self.world_size / step_targets))
        if not last:
            self._engine.step()

    def step(self, learning_rate: float, step: int) -> float:
        """Clip, update the weights, clear the gradients; return the norm before clipping."""
        set_rate(self._engine.optimizer.param_groups, learning_rate, step / self._steps)
        norm = None
        if self._stage == 0:
            gradients = [p.grad for p in self._trainable if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values summed over all ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self._engine.device)
        torch.distributed.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on every rank."""
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Yield each trainable parameter's whole float32 weights and optimizer tensors in turn."""
        for name, tensors in self._whole():
            yield name, {k: v.to("cpu", torch.float32, copy=True) for k, v in tensors.items()}

    def load_state(self, read: StateReader, step: int, *, optimizer: bool = True) -> None:
        """Put weights and, where asked, optimizer tensors back, at any stage and world size."""
        keys = state_keys(self._train) if optimizer else ()
        if self._partitions is not None:
            self._load_partitions(self._partitions, read, keys, step if optimizer else None)
            return
        if optimizer:
            self._make_optimizer_state(step)
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            tensors = read(name)
            with torch.no_grad():
                parameter.copy_(tensors["param"])
            if self._stage == 0:
                stored = self._engine.optimizer.state[parameter]
                for key in keys:
                    stored[key] = tensors[key].to(parameter.device, copy=True)
            else:
                self._set_flat(parameter, tensors, keys)

    def close(self) -> None:
        """Remove what lies on a disk."""
        if self._swap is not None:
            self._swap.close()

    def fingerprints(self) -> dict[str, float]:
        """Return a number per parameter that changes with this rank's part of it."""
        return {
            name: fingerprint(getattr(p, "ds_tensor", p))
            for name, p in self.module.named_parameters()
        }

    def _gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        if not any(hasattr(parameter, "ds_id") for parameter in parameters):
            return contextlib.nullcontext()
        context: AbstractContextManager[Any] = self._deepspeed.zero.GatheredParameters(
            list(parameters), modifier_rank=0
        )
        return context

    def _whole(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        keys = state_keys(self._train)
        if (partitions := self._partitions) is not None:
            for group, named in partitions.groups(self.module.named_parameters()):
                with partitions.held(group):
                    for name, parameter in named:
                        yield (
                            name,
                            {"param": partitions.whole(parameter, None)}
                            | {key: partitions.whole(parameter, key) for key in keys},
                        )
            return
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link_optimizer_state()
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if self._stage == 0:
                stored = self._engine.optimizer.state.get(parameter, {})
                tensors = {"param": parameter.detach()}
                yield name, tensors | {key: stored[key] for key in keys if key in stored}
            else:
                tensors = {"param": safe_get_full_fp32_param(parameter)}
                yield (
                    name,
                    tensors | {key: safe_get_full_optimizer_state(parameter, key) for key in keys},
                )

    def _load_partitions(
        self, partitions: Partitions, read: StateReader, keys: Sequence[str], step: int | None
    ) -> None:
        counted = step if self._train.optim == "adamw_torch" else None
        for group, named in partitions.groups(self.module.named_parameters()):
            with partitions.held(group, write=True):
                if step is not None:
                    partitions.make_state(group, keys, counted)
                for name, parameter in named:
                    tensors = read(name)
                    with self._gathered([parameter]), torch.no_grad():
                        parameter.copy_(tensors["param"])
                    partitions.set(parameter, None, tensors["param"])
                    for key in keys:
                        partitions.set(parameter, key, tensors[key])

    def _make_optimizer_state(self, step: int) -> None:
        zero = self._engine.optimizer
        inner = zero if self._stage == 0 else zero.optimizer
        holders = self._trainable if self._stage == 0 else zero.single_partition_of_fp32_groups
        for holder in holders:
            stored = inner.state[holder]
            for key in state_keys(self._train):
                if stored.get(key) is None:
                    stored[key] = torch.zeros_like(holder.data)
            if self._train.optim == "adamw_torch":
                stored["step"] = torch.tensor(float(step))
        self._link_optimizer_state()

    def _link_optimizer_state(self) -> None:
        # Stages 1 and 2 link flat optimizer tensors to parameters once, after the first *group's*
        # first step, when the other groups have none yet: link again.
        if self._stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _set_flat(
        self, parameter: nn.Parameter, tensors: Mapping[str, torch.Tensor], keys: Sequence[str]
    ) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        safe_set_full_fp32_param(parameter, tensors["param"].to(parameter.device))
        for key in keys:
            safe_set_full_optimizer_state(parameter, tensors[key].to(parameter.device), key)


def _hf_settings(settings: dict[str, Any]) -> Any:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    return HfDeepSpeedConfig(settings)
