"""The rows of a split, read once more from their files; prepared shards hold token ids only."""

from __future__ import annotations

from collections.abc import Iterator

from distft import plugin
from distft.config import RunConfig
from distft.data import resolve
from distft.data.assign import Dropped, Survey, decide
from distft.data.split import SPLITS, Split
from distft.data.survey import Reading, RowReader
from distft.errors import DataError


def split_readings(config: RunConfig, split: Split, key: str) -> Iterator[Reading]:
    """Yield the rows that preparing put into a split, in the order of its shards.

    Args:
        config: Of a run, format and task named.
        split: Which rows.
        key: Of the data that were prepared from the files.

    Yields:
        The rows; what cannot be encoded is among them.

    Raises:
        DataError: The files have changed since, or are gone.
    """
    assert config.data.format is not None
    form, task = plugin.formats()[config.data.format], plugin.tasks()[config.task.name]
    if resolve.prepared_key(config, task, form.name) != key:
        raise DataError(
            f"The files of the run have changed: its {split} rows cannot be told any more.",
            "Name a file with --data.",
        )
    reader = RowReader(form.name, resolve.columns_of(form, config.data), clean=config.data.clean)
    chunks = [
        (origin, chunk)
        for origin, files in resolve.sources(config.data).items()
        # What is mixed into training changes no split.
        if origin in SPLITS
        for file in files
        for chunk in file.chunks
    ]
    survey = Survey(near=config.data.clean.near_duplicates is not None)
    for origin, chunk in chunks:
        survey.begin(chunk.path, origin)
        for reading in reader.read(chunk):
            survey.read(reading, task)
    decide(survey, config.data, config.train.seed, Dropped())
    wanted = 1 + SPLITS.index(split)
    for codes, (_, chunk) in zip(survey.codes(), chunks, strict=True):
        for code, reading in zip(codes, reader.of_kept().read(chunk), strict=True):
            if code == wanted:
                yield reading
