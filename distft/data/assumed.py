"""Data as `data.assumed` states them: what a plan needs to know, and nothing is read."""

from __future__ import annotations

from distft import plugin
from distft.config import RunConfig
from distft.data import resolve
from distft.data.split import SPLITS
from distft.data.stats import DataStats
from distft.errors import ConfigError


def stated(config: RunConfig) -> tuple[str | None, str]:
    """Return the format and the task of a configuration whose data are assumed, not read.

    Args:
        config: With `data.assumed`.

    Returns:
        (format name, None where it is not set; task name).

    Raises:
        ConfigError: It names no task, mixes in files, or its format and task do not go together.
    """
    if config.task is None:
        raise ConfigError(
            "task: with data.assumed no data are read, so that the task must be named; allowed: "
            f"{', '.join(plugin.tasks())}.",
            "Such as `task: sft`.",
        )
    if config.data.mix:
        raise ConfigError(
            "data.assumed states the rows of data.train only; the sets of data.mix are not read.",
            "Leave data.mix out of this plan, or data.assumed where the files are.",
        )
    if config.data.format is not None:
        return resolve.detect(config)
    resolve.check_conversation_keys(config.data, plugin.tasks()[config.task.name])
    return None, config.task.name


def assumed_stats(config: RunConfig) -> DataStats:
    """Return the statistics that `data.assumed` states; reads no data and no tokenizer.

    Args:
        config: With its task resolved.

    Returns:
        Statistics with `exact` False: eval and test of their shares, where they are files 0 rows;
        no class names.

    Raises:
        ConfigError: Samples are longer on average than the longest may be, or too few to share.
    """
    assumed, data = config.data.assumed, config.data
    assert assumed is not None
    longest = resolve.cutoff_len(config, stated=True)
    if assumed.mean_tokens > longest:
        raise ConfigError(
            f"data.assumed.mean_tokens: got {assumed.mean_tokens:g}; samples have at most "
            f"{longest} tokens (data.cutoff_len).",
            "Lower it, or raise data.cutoff_len.",
        )
    rows = dict.fromkeys(map(str, SPLITS), 0)
    for split, share in resolve.shares(data).items():
        rows[split] = round(assumed.rows * share)
    left = assumed.rows - sum(rows.values())
    if left < 1:
        raise ConfigError(
            f"data.assumed.rows: {assumed.rows} leave nothing to train on beside data.eval "
            f"{data.eval} and data.test {data.test}.",
            "Raise it.",
        )
    rows["train"] = left if data.max_samples is None else min(left, data.max_samples)
    return DataStats(rows, assumed.mean_tokens, longest, labels=[], exact=False)
