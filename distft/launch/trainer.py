"""A plan -> Ray Train workers; a lost worker restarts the group from the newest checkpoint."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import ray.train
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from distft.config_sections import ClusterConfig
from distft.errors import DistftError, LostError, TrainError
from distft.launch.network import NodeTorchConfig
from distft.launch.room import resources, wait_for_room
from distft.launch.worker import run_worker

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from distft.train.job import Order

RESTARTS = 2
"""How often a group is started again after a worker died; errors of the run are never retried."""
_START_FAILED = "WorkerGroupStartupFailedError"
_PEER_LOST = re.compile(
    "gloo/transport|gloo/rendezvous|NCCL|Connection (closed|reset|refused)|Broken pipe"
)
"""What the others of a group raise when a node is lost, before Ray has noticed it."""


def fit(
    order: Order,
    cluster: ClusterConfig,
    *,
    say: Callable[[str], None],
    gate: ActorHandle | None = None,
) -> None:
    """Run the workers of a plan to their end.

    Args:
        order: What each worker gets.
        cluster: What each worker reserves.
        say: Told of every restart.
        gate: Of a search trial (see `distft.launch.worker.run_worker`).

    Raises:
        DistftError: What the workers raised.
        LostError: Workers died more often than RESTARTS, or have no place any more.
        TrainError: They raised something else.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    losses = 0
    while True:
        wait_for_room(order.plan, cluster, say)
        try:
            # distft owns the checkpoints; what Ray keeps of a run is of no use after it.
            with tempfile.TemporaryDirectory(prefix="distft-ray-") as storage:
                _trainer(order, cluster, gate, storage).fit()
            return
        except (ray.train.TrainingFailedError, RayActorError) as error:
            # The latter: Ray Train's controller itself died, which takes its workers along.
            cause = _cause(error)
            if isinstance(cause, DistftError):
                raise cause from None
            logs = order.run_dir / "logs"
            if _is_unplaced(cause):
                continue
            losses += _is_loss(cause)
            if losses > RESTARTS or not _is_loss(cause):
                kind = LostError if _is_loss(cause) else TrainError
                raise kind(
                    f"A worker failed: {type(cause).__name__}: {_first_line(cause)}",
                    f"The workers' logs are in {logs}; the same command continues the run.",
                ) from error
            say(f"a worker died; starting again from the newest checkpoint ({losses})")


def _is_unplaced(cause: BaseException) -> bool:
    """Return whether the workers found no place in time: others were faster, or a node is lost."""
    # Ray Train keeps the class to itself.
    return type(cause).__name__ == "WorkerGroupStartupTimeoutError"


def _is_loss(cause: BaseException) -> bool:
    """Return whether a worker or its node was lost, rather than that the run raised."""
    if isinstance(cause, OutOfMemoryError):
        return False
    known = isinstance(cause, RayActorError) or type(cause).__name__ == _START_FAILED
    return known or bool(_PEER_LOST.search(str(cause)))


class _InterruptibleTrainer(TorchTrainer):  # type: ignore[misc]  # Ray ships no types
    def _register_sigint_handler(self, controller: object) -> None:
        """Leave Ctrl-C to Python: Ray's handler ends the process with 1, and outlives the run."""


def _trainer(
    order: Order, cluster: ClusterConfig, gate: ActorHandle | None, storage: str
) -> TorchTrainer:
    plan = order.plan
    environment = {
        "DS_ACCELERATOR": plan.device,
        "OMP_NUM_THREADS": str(plan.threads_per_worker),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return _InterruptibleTrainer(
        run_worker,
        train_loop_config={**order.model_dump(), "gate": gate},
        scaling_config=ScalingConfig(
            num_workers=plan.world_size,
            use_gpu=plan.device == "cuda",
            resources_per_worker=resources(plan, cluster),
        ),
        run_config=RunConfig(
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
            worker_runtime_env={"env_vars": environment},
        ),
        torch_config=NodeTorchConfig(backend="nccl" if plan.device == "cuda" else "gloo"),
    )


def loss_of_process(error: BaseException) -> tuple[str, BaseException]:
    """Return what became of a process whose Ray actor failed.

    Args:
        error: As Ray raised it.

    Returns:
        (`memory`: ended for lack of memory; `lost`: died; `raised`: neither, what was raised).
    """
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, OutOfMemoryError):
        return "memory", cause
    return "lost" if isinstance(cause, RayActorError) else "raised", cause


def _cause(error: BaseException) -> BaseException:
    """Return the failure behind Ray's wrappers: ours first, then a death, then any other."""
    found = list(_unwrapped(error))
    for kind in (DistftError, RayActorError):
        for candidate in found:
            if isinstance(candidate, kind):
                return candidate
    others = [candidate for candidate in found if not isinstance(candidate, RayError)]
    return others[-1] if others else error


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        names = ("cause", "controller_failure", "health_check_failure", "_base_exc")
        inner = [getattr(current, name, None) for name in names]
        inner += [current.__cause__, *getattr(current, "worker_failures", {}).values()]
        pending += [item for item in inner if isinstance(item, BaseException)]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no message"
