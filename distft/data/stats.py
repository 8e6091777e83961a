"""How many rows and tokens there are: exact from a manifest, sampled for a plan. Loads no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distft import hf, plugin
from distft.config import RunConfig
from distft.data import resolve, sets
from distft.data.assign import Dropped, Survey, decide
from distft.data.labels import labels_of
from distft.data.manifest import Manifest
from distft.data.mix import Mix
from distft.data.source import Chunk
from distft.data.split import SPLITS, Part, code_of, parts_of
from distft.data.survey import Reading, RowReader
from distft.data.tokenize import encode_row
from distft.errors import DataError
from distft.plugin import Encoded, Row, Task

_SAMPLED_ROWS = 256
_READ_BYTES = 64 << 20
"""Rows of so much raw data are read; beyond it counts are extrapolated."""


@dataclass(frozen=True)
class DataStats:
    """What a plan needs to know of the data."""

    rows: dict[str, int]
    """Rows per split; of `train` those of `data.train`."""
    mean_tokens: float
    """Tokens per training sample; mixed sets weigh as much as their shares."""
    max_tokens: int
    """Tokens of the longest row seen."""
    labels: list[str]
    """Class names in id order; empty for tasks without classes."""
    exact: bool
    """True: counted in prepared data; False: tokens are sampled and rows may be extrapolated."""
    mixed_rows: Sequence[int] = ()
    """Rows of each set of `data.mix`."""


def stats_of(manifest: Manifest, shares: tuple[float, ...] = ()) -> DataStats:
    """Return the statistics of prepared data.

    Args:
        manifest: What `prepare` returned.
        shares: Of `data.mix`, where it names sets.

    Returns:
        Exact statistics.
    """
    mix = sets.mix_of(manifest, shares)
    means = [one.tokens / one.rows for one in manifest.training_sets]
    return DataStats(
        rows={
            **{split: info.rows for split, info in manifest.splits.items()},
            "train": mix.rows[0],
        },
        mixed_rows=mix.rows[1:],
        mean_tokens=mix.mean(means or [manifest.splits["train"].mean_length]),
        max_tokens=max(info.max_length for info in manifest.splits.values()),
        labels=manifest.labels,
        exact=True,
    )


@dataclass(frozen=True)
class Surveyed:
    """What one reading of the files says: the fate of every row, and what reads and encodes it."""

    task: Task
    readers: Mapping[Part, RowReader]
    survey: Survey
    """Decided."""
    chunks: Sequence[Chunk]
    """Those that were read, as the survey has them."""
    dropped: Dropped
    labels: list[str]
    """Class names in id order; empty for tasks without classes."""
    rows: dict[Part, int]
    """Rows per part, extrapolated where not all files were read."""
    complete: bool
    """Whether all files were read to their end."""


def survey_files(config: RunConfig, met: Callable[[Reading, Part, bytes | None], None]) -> Surveyed:
    """Read the files of a configuration, at most 64 MiB of each split's, and decide on the rows.

    Args:
        config: The configuration.
        met: Called with every row as it is read, the part whose files it stands in, and its key,
            which is None for an unusable row.

    Returns:
        What is known of the rows.

    Raises:
        ConfigError: Format or task is wrong.
        DataError: A file cannot be read, or a split is left without rows.
    """
    format_name, task_name = resolve.detect(config)
    task = plugin.tasks()[task_name]
    readers = sets.readers(config, format_name, task)
    survey, dropped = Survey(near=config.data.clean.near_duplicates is not None), Dropped()
    scale: dict[Part, float] = {}
    kept: list[Chunk] = []
    for part, scanned in resolve.sources(config.data).items():
        chunks = [chunk for file in scanned for chunk in file.chunks]
        read = list(_affordable(chunks))
        kept += read
        # A Parquet file without rows has no chunk.
        scale[part] = sum(c.size_bytes for c in chunks) / (sum(c.size_bytes for c in read) or 1)
        for chunk in read:
            survey.begin(chunk.path, part)
            for reading in readers[part].read(chunk):
                met(reading, part, survey.read(reading, task))
    decide(survey, config.data, config.train.seed, dropped)
    complete = all(factor == 1 for factor in scale.values())
    return Surveyed(
        task=task,
        readers=readers,
        survey=survey,
        chunks=kept,
        dropped=dropped,
        labels=labels_of(survey, task, config.data, complete=complete),
        rows=_rows(survey, scale, config.data.max_samples),
        complete=complete,
    )


def sample_stats(config: RunConfig) -> DataStats:
    """Return statistics without preparing: rows read once, 256 of them tokenized.

    Which 256 is decided by the hash of their input: files are often sorted, and the first rows
    would speak for themselves only.

    Args:
        config: The configuration.

    Returns:
        Statistics with `exact` False.

    Raises:
        ConfigError: Format, task or length is wrong.
        DataError: The rows are wrong, as far as they are read.
    """
    samples: dict[Part, list[tuple[bytes, Row]]] = {}

    def met(reading: Reading, part: Part, key: bytes | None) -> None:
        _refuse_if_asked(reading, config)
        if part not in ("eval", "test") and key and reading.value is not None:
            _keep_if_small(samples.setdefault(part, []), key, reading.value)

    found = survey_files(config, met)
    if found.complete and config.task is not None:
        found.task.check(config.task, found.labels)
    context = resolve.context(config, found.labels)
    tokenizer = hf.load_tokenizer(config.model, config.data.template)
    lengths: list[list[int]] = []
    for part, sample in samples.items():
        _keep_smallest(sample)
        encoded = (encode_row(row, found.task, tokenizer, context) for _, row in sample)
        lengths.append([len(one.input_ids) for one in encoded if isinstance(one, Encoded)])
        if not lengths[-1]:
            raise DataError(
                f"None of {len(sample)} usable rows of "
                f"{'data.train' if part == 'train' else sets.named(part, config.data)} can be "
                f"tokenized within {context.cutoff_len} tokens.",
                "Raise data.cutoff_len; `distft data preview` shows the rows, and why.",
            )
    mixed_rows = [found.rows[part] for part in parts_of(len(config.data.mix))[len(SPLITS) :]]
    mix = Mix((found.rows["train"], *mixed_rows), config.data.mix_shares)
    return DataStats(
        rows={split: found.rows[split] for split in SPLITS},
        mixed_rows=mixed_rows,
        mean_tokens=mix.mean([sum(some) / len(some) for some in lengths]),
        max_tokens=max(max(some) for some in lengths),
        labels=found.labels,
        exact=False,
    )


def _affordable(chunks: list[Chunk]) -> Iterator[Chunk]:
    size_bytes = 0
    for chunk in chunks:
        if size_bytes >= _READ_BYTES:
            return
        size_bytes += chunk.size_bytes
        yield chunk


def _keep_if_small(sample: list[tuple[bytes, Row]], key: bytes, row: Row) -> None:
    sample.append((key, row))
    if len(sample) > 8 * _SAMPLED_ROWS:
        _keep_smallest(sample)


def _keep_smallest(sample: list[tuple[bytes, Row]]) -> None:
    sample.sort(key=lambda pair: pair[0])
    del sample[_SAMPLED_ROWS:]


def _refuse_if_asked(reading: Reading, config: RunConfig) -> None:
    if reading.error and not reading.cleaned_out and config.data.on_bad_row == "fail":
        raise DataError(f"{reading.error}.", "Mend the row, or set data.on_bad_row to skip.")


def _rows(survey: Survey, scale: Mapping[Part, float], max_samples: int | None) -> dict[Part, int]:
    parts = parts_of(len(set(scale) - set(SPLITS)))
    rows: dict[Part, float] = dict.fromkeys(parts, 0.0)
    for (chunk, _), codes in zip(survey.by_chunk(), survey.codes(), strict=True):
        for part in parts:
            rows[part] += codes.count(code_of(part)) * scale[chunk.origin]
    if max_samples is not None:
        rows["train"] = min(rows["train"], max_samples)
    return {part: round(count) for part, count in rows.items()}
