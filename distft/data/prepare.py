"""Raw files -> tokenized shards and their manifest, once per (data, tokenizer, template, length).

Two passes over the rows by a pool of workers: the first brings keys and classes to this process,
which decides splits and drops repetitions; the second tokenizes what stays.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from ray import cloudpickle

from distft import errors, hf, plugin
from distft.config import RunConfig
from distft.data import files, finished, resolve, sets
from distft.data.assign import Dropped, Survey, check_not_empty, decide
from distft.data.finished import Finished, Refused
from distft.data.guard import check_trained
from distft.data.labels import labels_of
from distft.data.manifest import (
    MANIFEST_FILE,
    Manifest,
    SourceInfo,
    SplitInfo,
    TokenizerInfo,
    load_manifest,
    log_preparation,
    save_manifest,
)
from distft.data.passes import Encoder, Job, Surveyor
from distft.data.pool import Pool, cpus
from distft.data.shards import ShardWriter
from distft.data.split import Part
from distft.errors import DataError, DistftError, LostError
from distft.plugin import Task

Progress = Callable[[int, int], None]
"""(rows tokenized, rows in all)."""

_BYTES_PER_WORKER = 4 << 20
"""Raw data below which another worker costs more to start than it saves."""
_MEND = "Mend the row, or set data.on_bad_row to skip."
_REFUSED = ["place", "row", "split", "reason", "untrained"]


def prepare(config: RunConfig, *, progress: Progress | None = None) -> tuple[Path, Manifest]:
    """Return the prepared data of a configuration, making them when they do not exist yet.

    Ray must be initialised. Writes `<output_dir>/prepared/<key>/` and a line to `log.jsonl` beside
    it; an error in the rows leaves nothing there, an interruption the finished shards, from where
    the next call goes on.

    Args:
        config: The configuration.
        progress: Called in this process as rows are tokenized.

    Returns:
        The folder and its verified manifest.

    Raises:
        ConfigError: Format, task or length is wrong.
        DataError: The rows are wrong: none usable, a label never trained, a broken file.
        LostError: A worker was ended; the finished shards stay.
    """
    format_name, task_name = resolve.detect(config)
    task = plugin.tasks()[task_name]
    key = resolve.prepared_key(config, task, format_name)
    root = Path(config.output_dir).absolute() / "prepared" / key
    with _locked(root):
        if (root / MANIFEST_FILE).is_file():
            return root, load_manifest(root)
        started_s = time.perf_counter()
        try:
            manifest = _make(config, task, format_name, key, root, progress)
            save_manifest(root, manifest)
        except LostError:
            raise
        except DistftError:
            shutil.rmtree(root, ignore_errors=True)
            raise
        (root / finished.FINISHED_FILE).unlink(missing_ok=True)
        log_preparation(root, manifest, time.perf_counter() - started_s)
    return root, manifest


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Let one process at a time make a folder; the lock ends with its holder, however it ends."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        handle = (root.parent / f".{root.name}.lock").open("w")
    except OSError as error:
        raise errors.ConfigError(
            f"output_dir: {error.filename} cannot be written: {error.strerror}.",
            "Set output_dir to a folder you may write to.",
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make(
    config: RunConfig,
    task: Task,
    format_name: str,
    key: str,
    root: Path,
    progress: Progress | None,
) -> Manifest:
    begun = finished.take_up(root)
    sources = resolve.sources(config.data)
    readers = sets.readers(config, format_name, task)
    chunks = [
        (part, chunk)
        for part, scanned in sources.items()
        for file in scanned
        for chunk in file.chunks
    ]
    job = Job(
        task=task.name,
        readers=readers,
        origins=[part for part, _ in chunks],
        chunks=[chunk for _, chunk in chunks],
        stop_at_bad_row=config.data.on_bad_row == "fail",
    )
    dropped = Dropped()
    with Pool(_workers(job)) as pool:
        # Loaded while the workers start.
        tokenizer = _tokenizer(config)
        survey = _survey(pool, job)
        decide(survey, config.data, config.train.seed, dropped)
        labels = labels_of(survey, task, config.data)
        context = resolve.context(config, labels)
        kept = {part: reader.of_kept() for part, reader in readers.items()}
        encoder = Encoder(replace(job, readers=kept), tokenizer, context)
        writers = sets.writers(root, config.data, task, len(labels), begun)
        parts, tokenized = _tokenize(
            pool, encoder, survey.codes(), root, begun, writers, dropped, progress
        )
    rows = {sets.named(part, config.data): info.rows for part, info in parts.items()}
    check_not_empty(rows, dropped)
    return Manifest(
        key=key,
        task=task.name,
        format=format_name,
        columns=dict(readers["train"].columns),
        labels=labels,
        cutoff_len=context.cutoff_len,
        tokenizer=TokenizerInfo(
            name=config.model.id, sha256=resolve.tokenizer_hash(config.model, config.data.template)
        ),
        splits=sets.joined(parts),
        training_sets=sets.described(parts, readers),
        tokenized_rows=tokenized,
        dropped=dict(dropped.counts.most_common()),
        dropped_rows=dropped.rows,
        cleaning=survey.cleaning.steps(),
        sources=[
            SourceInfo(split=part, file=file.path, bytes=file.size_bytes, sha256=file.sha256)
            for part, scanned in sources.items()
            for file in scanned
        ],
        unread_files=[
            path for spec in resolve.specs(config.data).values() for path in files.unread(spec)
        ],
    )


def _survey(pool: Pool, job: Job) -> Survey:
    """Return what is known of the rows of a job's chunks, in file order."""
    survey = Survey()
    for number, table in pool.run(Surveyor(job), ((i,) for i in range(len(job.chunks)))):
        if job.stop_at_bad_row:
            for error in table["error"].drop_null().slice(0, 1).to_pylist():
                raise DataError(f"{error}.", _MEND)
        while len(survey.chunks) <= number:
            _begin(survey, job)
        survey.extend(table)
    while len(survey.chunks) < len(job.chunks):
        _begin(survey, job)
    return survey


def _begin(survey: Survey, job: Job) -> None:
    number = len(survey.chunks)
    survey.begin(job.chunks[number].path, job.origins[number])


def _tokenizer(config: RunConfig) -> Any:
    """Return the tokenizer, ready to be sent: to load it anew in every process takes seconds."""
    tokenizer = hf.load_tokenizer(config.model, config.data.template)
    home = type(tokenizer).__module__
    if home.startswith("transformers_modules."):
        # Code that came with the model; other processes do not find its file.
        cloudpickle.register_pickle_by_value(sys.modules[home])
    return tokenizer


def _tokenize(
    pool: Pool,
    encoder: Encoder,
    wanted: Sequence[bytes],
    root: Path,
    begun: Finished,
    writers: Mapping[Part, ShardWriter],
    dropped: Dropped,
    progress: Progress | None,
) -> tuple[dict[Part, SplitInfo], int]:
    """Write the shards; return what they hold, and how many rows were tokenized for them."""
    job, parts = encoder.job, list(writers)
    refused = list(begun.refused)
    left = begun.left(wanted)
    total = _rows(wanted)
    done, tokenized = total - _rows(left), begun.tokenized_rows
    # A chunk of which nothing is left is not read again.
    items = ((i, codes) for i, codes in enumerate(left) if codes.count(0) < len(codes))
    for _, table in pool.run(encoder, items):
        good = pc.is_null(table["reason"])
        for item in table.filter(pc.invert(good)).select(_REFUSED).to_pylist():
            path = job.chunks[finished.chunk_of(item["place"])].path
            if job.stop_at_bad_row:
                raise DataError(f"{path}:{item['row']}: {item['reason']}.", _MEND)
            refused.append(Refused(**{**item, "split": parts[item["split"] - 1]}))
        done, tokenized = done + table.num_rows, tokenized + table.num_rows
        ended = False
        for code, writer in enumerate(writers.values(), start=1):
            mine = pc.and_(pc.equal(table["split"], code), good)
            ended |= writer.add(table.filter(mine))
        if ended:
            infos = {part: (writer.finished, writer.place) for part, writer in writers.items()}
            finished.save(root, infos, refused, tokenized)
        if progress is not None:
            progress(done, total)
    refused.sort(key=lambda one: one.place)
    for one in refused:
        dropped.add(job.chunks[finished.chunk_of(one.place)].path, one.row, one.reason)
    written = {part: writer.close() for part, writer in writers.items()}
    paths = [chunk.path for chunk in job.chunks]
    for part, info in sets.trained(written).items():
        mine = [one for one in refused if one.split == part]
        check_trained(plugin.tasks()[job.task], info, mine, paths)
    return written, tokenized


def _rows(wanted: Sequence[bytes]) -> int:
    return sum(len(codes) - codes.count(0) for codes in wanted)


def _workers(job: Job) -> int:
    size_bytes = sum(chunk.size_bytes for chunk in job.chunks)
    return max(1, min(len(job.chunks), cpus(), size_bytes // _BYTES_PER_WORKER))
