"""How an optimizer step is made up: what the user sets, and what follows from it."""

from __future__ import annotations

import math

from distft.config import RunConfig
from distft.errors import ConfigError

DEFAULT_GLOBAL_BATCH = 16
LARGEST_DEFAULT_MICRO_BATCH = 8


def batch_sizes(
    config: RunConfig,
    reasons: dict[str, str] | None = None,
    largest: int = LARGEST_DEFAULT_MICRO_BATCH,
) -> tuple[int, int, int]:
    """Return how an optimizer step is made up.

    Args:
        config: The configuration.
        reasons: Gets a reason for each derived value.
        largest: Samples of a micro-batch at most, where that number is free.

    Returns:
        (samples of a step over all workers, samples of a micro-batch, micro-batches per worker).

    Raises:
        ConfigError: The settings contradict one another.
    """
    train, world = config.train, config.cluster.num_workers
    reasons = {} if reasons is None else reasons
    micro, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    whole = train.global_batch_size
    if whole is None:
        if micro is None and accumulation is None:
            whole = max(DEFAULT_GLOBAL_BATCH, world)
            reasons["train.global_batch_size"] = f"{whole} is the default"
        else:
            micro_or_default = micro or LARGEST_DEFAULT_MICRO_BATCH
            whole = micro_or_default * (accumulation or 1) * world
            reasons["train.global_batch_size"] = "it is the product of the other batch settings"
    if whole < world:
        raise ConfigError(
            f"train.global_batch_size: got {whole}, but {world} workers need at least one sample "
            f"each; allowed: {world} or more."
        )
    if micro is None:
        micro = math.ceil(whole / (world * (accumulation or 1)))
        if accumulation is None:
            micro = min(micro, largest)
        reasons["train.per_device_train_batch_size"] = (
            f"{micro} is what {whole} samples over {world} worker(s) need, at most "
            f"{LARGEST_DEFAULT_MICRO_BATCH} by default"
            if largest == LARGEST_DEFAULT_MICRO_BATCH
            else f"{micro} is what fits"
        )
    if accumulation is None:
        accumulation = math.ceil(whole / (micro * world))
        reasons["train.gradient_accumulation_steps"] = (
            f"{whole} samples in micro-batches of {micro} over {world} worker(s)"
        )
    if train.global_batch_size is not None and not (
        micro * world * (accumulation - 1) < whole <= micro * world * accumulation
    ):
        raise ConfigError(
            f"train.global_batch_size={whole} does not fit {world} workers x "
            f"{accumulation} gradient_accumulation_steps x {micro} per_device_train_batch_size "
            f"= {micro * world * accumulation}.",
            "Leave one of the three out; it is derived.",
        )
    return whole, micro, accumulation
