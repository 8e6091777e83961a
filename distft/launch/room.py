"""Whether a cluster has room for workers: taken by others is waited for, lost only for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import ray

from distft.config_sections import ClusterConfig
from distft.errors import LostError
from distft.launch.session import start_timeout_s

if TYPE_CHECKING:
    from distft.plan import Plan

_POLL_S = 1.0
_SAY_S = 60.0
_PATIENCE_S = 10.0
"""Not worth a word: what ended just now is being cleared away."""


def resources(plan: Plan, cluster: ClusterConfig) -> dict[str, float]:
    """Return what each worker reserves.

    Args:
        plan: Of the run.
        cluster: As configured.

    Returns:
        Ray's resource name -> amount.
    """
    each = {"CPU": float(cluster.cpus_per_worker)}
    if plan.device == "cuda":
        each["GPU"] = 1.0
    return each


class Watch:
    """Looks whether the living nodes could hold some workers, were they idle.

    Args:
        each: What a worker reserves.
        workers: Their number.
    """

    def __init__(self, each: Mapping[str, float], workers: int) -> None:
        self._each, self._workers = each, workers
        self._since: float | None = None

    def lacking(self) -> bool:
        """Return whether they could not.

        Returns:
            True as long as workers may take to find their places.

        Raises:
            LostError: It lasted longer.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        held = [min(node.get(name, 0.0) // n for name, n in self._each.items()) for node in nodes]
        if sum(held) >= self._workers:
            self._since = None
            return False
        self._since = self._since or time.monotonic()
        longest_s = start_timeout_s()
        if time.monotonic() - self._since > longest_s:
            raise LostError(
                f"{self.needs()}; for {longest_s:g} s the cluster has not had the nodes for that.",
                "Bring lost nodes back, or lower cluster.num_workers; the same command goes on.",
            )
        return True

    def needs(self) -> str:
        """Return what they reserve in all, in words."""
        total = ", ".join(f"{n * self._workers:g} {name}" for name, n in self._each.items())
        return f"{self._workers} worker(s) need {total}"

    def free(self) -> bool:
        """Return whether as much is free."""
        free = ray.available_resources()
        return all(free.get(name, 0.0) >= n * self._workers for name, n in self._each.items())


def wait_for_room(plan: Plan, cluster: ClusterConfig, say: Callable[[str], None]) -> None:
    """Return once the connected cluster has room for a plan's workers.

    Args:
        plan: Of the run.
        cluster: What each worker reserves.
        say: Told what is waited for, now and then.

    Raises:
        LostError: The nodes are not there, and did not come back.
    """
    watch = Watch(resources(plan, cluster), plan.world_size)
    said = time.monotonic() - _SAY_S + _PATIENCE_S
    while True:
        lacking = watch.lacking()
        if not lacking and watch.free():
            return
        if time.monotonic() - said > _SAY_S:
            said = time.monotonic()
            who = "lost nodes" if lacking else "other jobs"
            say(f"waiting for {who}: {watch.needs()} ...")
        time.sleep(_POLL_S)
