"""This rank's parts of weights and optimizer tensors under ZeRO 3, in memory or on a disk.

DeepSpeed 0.19.8 keeps them flat, many parameters to a group (`runtime/zero/stage3.py`). A group on
a disk is brought in whole, so all its parameters are read or written while it is there:
`safe_get_full_optimizer_state` would bring it in once for each tensor of each parameter.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn


class Partitions:
    """The flat groups of one rank.

    Args:
        zero: DeepSpeed's stage 3 optimizer.
    """

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def groups(
        self, named: Iterable[tuple[str, nn.Parameter]]
    ) -> Iterator[tuple[int, list[tuple[str, nn.Parameter]]]]:
        """Yield the parameters that are trained, by group.

        Args:
            named: All parameters of the module.

        Yields:
            (group, its parameters with their names), the same on every rank.
        """
        found = defaultdict(list)
        for name, parameter in named:
            if parameter.requires_grad:
                found[self._place(parameter)[0]].append((name, parameter))
        yield from sorted(found.items())

    @contextlib.contextmanager
    def held(self, group: int, *, write: bool = False) -> Iterator[None]:
        """Have a group in memory for a while.

        Args:
            group: Its number.
            write: Put it back on the disk with what was changed.

        Yields:
            Nothing; `part` may be used meanwhile.
        """
        if not self._zero._swappable_optimizer_subgroup(group):
            yield
            return
        self._zero._optimizer_states_and_gradient_swap_in(group)
        yield
        if write:
            self._zero._optimizer_states_and_gradient_swap_out(group)
        else:
            self._zero._release_swap_buffers(group)

    def make_state(self, group: int, keys: Iterable[str], step: int | None) -> None:
        """Give a group the optimizer tensors it lacks, which do not exist before a step.

        Args:
            group: Its number; it is held.
            keys: Of the tensors.
            step: For an optimizer that counts its steps; None for one that does not.
        """
        holder = self._zero.fp32_partitioned_groups_flat[group]
        stored = self._zero.optimizer.state[holder]
        for key in keys:
            if stored.get(key) is None:
                stored[key] = torch.zeros_like(holder.data)
        if step is not None:
            stored["step"] = torch.tensor(float(step))

    def whole(self, parameter: nn.Parameter, key: str | None) -> torch.Tensor:
        """Return a tensor gathered from all ranks; every rank calls it.

        Args:
            parameter: Its group is held.
            key: Of the optimizer's tensor; None: the float32 weights.

        Returns:
            In the parameter's shape.
        """
        gathered: torch.Tensor = self._zero._fp32_state_allgather(
            parameter, self._part(parameter, key)
        )
        return gathered

    def set(self, parameter: nn.Parameter, key: str | None, whole: torch.Tensor) -> None:
        """Take this rank's part of a tensor.

        Args:
            parameter: Its group is held.
            key: Of the optimizer's tensor; None: the float32 weights.
            whole: In the parameter's shape.
        """
        part = self._part(parameter, key)
        size, values = part.numel(), whole.flatten()
        mine = values[torch.distributed.get_rank() * size :][:size]
        # The last rank's part is padded where the world does not divide the size.
        part.zero_()
        part[: mine.numel()].copy_(mine)

    def _part(self, parameter: nn.Parameter, key: str | None) -> torch.Tensor:
        group, offset, size = self._place(parameter)
        holder = self._zero.fp32_partitioned_groups_flat[group]
        tensor = holder.data if key is None else self._zero.optimizer.state[holder][key]
        part: torch.Tensor = tensor.narrow(0, offset, size)
        return part

    def _place(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Return (group, where in it, how many numbers)."""
        group, offset, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
        return group, offset, size
