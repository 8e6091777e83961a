"""Ray actors that go through items side by side; what they make of each comes back in order."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayTaskError

from distft.errors import DistftError, LostError

Stage = Callable[..., Iterator[Any]]
"""(item) -> what is made of it, piece by piece."""

_UNREAD_PIECES = 32
"""Of an item that is not yet read; a worker that is so far ahead waits."""
_ITEMS_AHEAD = 2
"""Of each worker: the one it is at, and one more, so that it need not wait for this process."""
_RESTARTS = 3
"""Of a worker, where there are other nodes."""
_ENVIRONMENT = {
    "env_vars": {
        # Tokenizers spend half their time on memory; with the allocator that comes with Ray hardly
        # any. A node that lacks the file takes the usual one.
        "LD_PRELOAD": str(Path(ray.__file__).parent / "core/libjemalloc.so"),
        # A worker has one CPU; the backend would start a thread for every one there is.
        "TOKENIZERS_PARALLELISM": "false",
    }
}


class _Worker:
    """What a Ray actor does: it keeps the stage it last worked at."""

    def __init__(self) -> None:
        self._held: tuple[Any, Stage] | None = None

    def work(self, stage: list[Any], item: tuple[Any, ...]) -> Iterator[Any]:
        # Not taken from an earlier call alone: an actor that was restarted has seen none.
        if self._held is None or self._held[0] != stage[0]:
            self._held = (stage[0], ray.get(stage[0]))
        yield from self._held[1](*item)


class Pool:
    """Workers with a CPU each, which start at once and end with the `with` block.

    Args:
        size: How many; on a cluster that is busy some may begin later.
    """

    def __init__(self, size: int) -> None:
        # On one node a worker dies for want of memory; the next would as well.
        again = _RESTARTS if len(ray.nodes()) > 1 else 0
        actor = ray.remote(
            num_cpus=1, max_restarts=again, max_task_retries=again, runtime_env=_ENVIRONMENT
        )(_Worker)
        self._actors = [actor.remote() for _ in range(size)]
        self._starting = {one.__ray_ready__.remote(): one for one in self._actors}
        self._items: Counter[Any] = Counter()
        """Worker that has started -> items given to it that are not yet read."""

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers, whatever they are at."""
        for one in self._actors:
            ray.kill(one)

    def run(self, stage: Stage, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yield what a stage makes of items, in their order; memory does not grow with them.

        Args:
            stage: Goes to the workers once.
            items: Its arguments.

        Yields:
            (which item, from 0; what the stage yields).

        Raises:
            DistftError: The stage's own.
            LostError: A worker ended, and there is no other node to go on.
        """
        given = [ray.put(stage)]
        left = enumerate(items)
        underway: deque[tuple[int, Any, Any]] = deque()
        while self._give(given, left, underway):
            number, worker, pieces = underway.popleft()
            for piece in pieces:
                yield number, _got(piece)
                self._give(given, left, underway)
            self._items[worker] -= 1

    def _give(
        self,
        stage: list[Any],
        left: Iterator[tuple[int, tuple[Any, ...]]],
        underway: deque[tuple[int, Any, Any]],
    ) -> bool:
        """Give items to workers that have few; return whether any item is underway."""
        self._welcome()
        # While some are starting, what is left may be theirs.
        most = 1 if self._starting else _ITEMS_AHEAD
        while self._items[worker := min(self._items, key=self._items.__getitem__)] < most:
            if (following := next(left, None)) is None:
                break
            number, item = following
            work = worker.work.options(
                num_returns="streaming", _generator_backpressure_num_objects=_UNREAD_PIECES
            )
            underway.append((number, worker, work.remote(stage, item)))
            self._items[worker] += 1
        return bool(underway)

    def _welcome(self) -> None:
        """Note which workers have started; wait for the first."""
        while self._starting:
            patience_s = None if not self._items else 0
            started, _ = ray.wait(list(self._starting), timeout=patience_s, fetch_local=False)
            if not started:
                return
            for one in started:
                self._items[self._starting.pop(one)] = 0


def cpus() -> int:
    """Return how many processes have a CPU each; a local Ray offers more slots than there are."""
    slots = int(ray.cluster_resources().get("CPU", 1))
    return slots if len(ray.nodes()) > 1 else min(slots, len(os.sched_getaffinity(0)))


def _got(piece: Any) -> Any:
    try:
        return ray.get(piece)
    except RayTaskError as error:
        if isinstance(error.cause, DistftError):
            raise error.cause from None
        raise
    except RayActorError as error:
        # Ray's own words are a page of guesses.
        raise LostError(
            "A process that reads and tokenizes rows was ended from outside.",
            "Often memory ran out: `dmesg` tells. Finished shards stay: run the command again.",
        ) from error
