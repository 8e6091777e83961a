"""The training sets, `data.train` and those of `data.mix`: how each is read, what all are together.

Their samples lie in one split, one set after the other, so that every sample has one id.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distft import plugin
from distft.config import RunConfig
from distft.config_sections import DataConfig
from distft.data import resolve
from distft.data.finished import Finished
from distft.data.manifest import Manifest, SplitInfo, TrainingSet
from distft.data.mix import Mix
from distft.data.shards import ShardWriter
from distft.data.split import SPLITS, Part, parts_of
from distft.data.survey import RowReader
from distft.errors import ConfigError
from distft.plugin import Task


def named(part: Part, data: DataConfig) -> str:
    """Return what to call a part in messages.

    Args:
        part: A split or a mixed set.
        data: The data settings.

    Returns:
        Its name; of a mixed set with its files.
    """
    return part if part in SPLITS else f"{resolve.specs(data)[part]} of data.mix"


def readers(config: RunConfig, format_name: str, task: Task) -> dict[Part, RowReader]:
    """Return what reads the rows of each part.

    The rows of a mixed set are read as those of `data.train` where they fit that, with its columns
    or the format's own; else as they are detected by themselves.

    Args:
        config: The configuration.
        format_name: Of `data.train`.
        task: What is learnt.

    Returns:
        A reader for each part that comes from files.

    Raises:
        ConfigError: Several formats or none fit a mixed set.
        DataError: Its files cannot be read.
    """
    form = plugin.formats()[format_name]
    shared = RowReader(form.name, resolve.columns_of(form, config.data), clean=config.data.clean)
    told = config.model_copy(update={"task": config.task or task.config(name=task.name)})
    return {
        part: shared if part in SPLITS else _reader(told, shared, spec)
        for part, spec in resolve.specs(config.data).items()
    }


def _reader(config: RunConfig, shared: RowReader, spec: str | list[str]) -> RowReader:
    form = plugin.formats()[shared.format]
    data = config.data.model_copy(update={"train": spec, "format": None})
    rows = resolve.first_rows(data, "data.mix")
    for columns in (config.data.columns, {}):
        data = data.model_copy(update={"columns": columns})
        if resolve.readable(rows, form, data):
            return RowReader(form.name, resolve.columns_of(form, data), clean=data.clean)
    try:
        other = plugin.formats()[resolve.detect_format(config.model_copy(update={"data": data}))]
    except ConfigError as error:
        raise ConfigError(
            str(error).replace("data.format", "data.mix", 1),
            f"Give it the fields of data.train ({', '.join(shared.columns.values())}), or those of "
            "another format; `distft formats` shows them.",
        ) from error
    return RowReader(other.name, resolve.columns_of(other, data), clean=data.clean)


def writers(
    root: Path, data: DataConfig, task: Task, classes: int, begun: Finished
) -> dict[Part, ShardWriter]:
    """Return what writes the samples of each part.

    Args:
        root: Folder of the shards.
        data: The data settings.
        task: Whose samples.
        classes: How many there are.
        begun: What an earlier attempt finished.

    Returns:
        A writer for each part, in the order of their codes.
    """
    found: dict[Part, ShardWriter] = {}
    before = "train"
    for part in parts_of(len(data.mix)):
        after = None if part in SPLITS else found[before]
        found[part] = ShardWriter(root, part, task, classes, begun.of(part), after)
        before = before if part in SPLITS else part
    return found


def trained(parts: Mapping[Part, SplitInfo]) -> dict[Part, SplitInfo]:
    """Return the parts that are trained on.

    Args:
        parts: What all hold.

    Returns:
        `train` and the mixed sets.
    """
    return {part: info for part, info in parts.items() if part not in ("eval", "test")}


def joined(parts: Mapping[Part, SplitInfo]) -> dict[str, SplitInfo]:
    """Return what the splits hold.

    Args:
        parts: What each part holds.

    Returns:
        The splits; all training sets, one after the other, are `train`.
    """
    splits: dict[str, SplitInfo] = {split: parts[split] for split in SPLITS}
    for part, info in parts.items():
        if part not in SPLITS:
            splits["train"] = splits["train"].followed_by(info)
    return splits


def described(
    parts: Mapping[Part, SplitInfo], read_by: Mapping[Part, RowReader]
) -> list[TrainingSet]:
    """Return what the manifest says of the training sets.

    Args:
        parts: What each part holds.
        read_by: Their readers.

    Returns:
        Nothing where `data.train` is the only one: the split says it all.
    """
    sets = trained(parts)
    if len(sets) == 1:
        return []
    return [
        TrainingSet(
            format=read_by[part].format,
            columns=dict(read_by[part].columns),
            rows=info.rows,
            tokens=info.tokens,
            label_counts=info.label_counts,
        )
        for part, info in sets.items()
    ]


def mix_of(manifest: Manifest, shares: tuple[float, ...]) -> Mix:
    """Return how the samples of a run are drawn from prepared sets.

    Args:
        manifest: What was prepared.
        shares: Of `data.mix`.

    Returns:
        The sets with their shares.
    """
    rows = [one.rows for one in manifest.training_sets] or [manifest.splits["train"].rows]
    return Mix(tuple(rows), shares)


def label_counts(manifest: Manifest, shares: tuple[float, ...]) -> tuple[list[int], int]:
    """Return how often each class is trained on.

    Args:
        manifest: What was prepared.
        shares: Of `data.mix`.

    Returns:
        (count of each class by its id, samples) of the training rows; where sets are mixed, of one
        pass over `data.train` and what comes between.
    """
    train, mix = manifest.splits["train"], mix_of(manifest, shares)
    if not mix.shares:
        return train.label_counts, train.rows
    samples = mix.samples(1)
    counts = np.zeros(len(train.label_counts))
    for one, taken in zip(manifest.training_sets, mix.taken(samples), strict=True):
        counts += np.asarray(one.label_counts) * taken / one.rows
    # A class that is there counts.
    return np.ceil(counts).astype(int).tolist(), samples
