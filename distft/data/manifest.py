"""What prepared data hold: the manifest, written last, verified before use."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distft.errors import DataError
from distft.records import write_text

MANIFEST_FILE = "manifest.json"
LOG_FILE = "log.jsonl"
"""Beside the folders of prepared data: a line for each time such data were made."""
SCHEMA_VERSION = 1

_REMEDY = "Delete the folder {root} and run the same command again; it is made anew."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Shard(_Part):
    """One Parquet file."""

    file: str
    rows: int
    row_groups: list[int]
    """Rows of each row group."""
    bytes: int
    sha256: str


class SplitInfo(_Part):
    """One split: what it counts and where it lies."""

    rows: int = 0
    tokens: int = 0
    targets: int = 0
    """Terms of the loss: trained tokens, or one per row."""
    truncated: int = 0
    """Rows shortened to `cutoff_len`."""
    ended: int = 0
    """Rows in which the end of what is written is trained."""
    mean_length: float = 0.0
    """Tokens per row."""
    max_length: int = 0
    label_counts: list[int] = Field(default_factory=list)
    """How often each class is trained on, by its id."""
    shards: list[Shard] = Field(default_factory=list)

    @property
    def row_groups(self) -> list[int]:
        """Rows of every row group, in the order of sample ids."""
        return [rows for shard in self.shards for rows in shard.row_groups]

    def said(self) -> str:
        """Return its sizes in a line."""
        size_mb = sum(shard.bytes for shard in self.shards) / 1e6
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens ({self.targets:,} trained on), "
            f"{self.mean_length:.1f} a row, longest {self.max_length}, {self.truncated:,} "
            f"truncated, {size_mb:.1f} MB"
        )

    def followed_by(self, other: SplitInfo) -> SplitInfo:
        """Return what two sets of samples are together.

        Args:
            other: Its ids follow.

        Returns:
            One set.
        """
        summed = ("rows", "tokens", "targets", "truncated", "ended")
        both = {name: getattr(self, name) + getattr(other, name) for name in summed}
        counts = zip(self.label_counts, other.label_counts, strict=True)
        return SplitInfo(
            **both,
            mean_length=both["tokens"] / both["rows"] if both["rows"] else 0.0,
            max_length=max(self.max_length, other.max_length),
            label_counts=[one + more for one, more in counts],
            shards=[*self.shards, *other.shards],
        )


class TrainingSet(_Part):
    """The rows of `data.train` or of a set of `data.mix`, as far as they are trained on."""

    format: str
    columns: dict[str, str]
    rows: int
    tokens: int
    label_counts: list[int]
    """How often each class stands in it, by its id."""


class TokenizerInfo(_Part):
    """Which tokenizer made the ids."""

    name: str
    sha256: str


class DroppedRow(_Part):
    """A row that is in no split."""

    file: str
    row: int
    """1-based line of the file; for a JSON array the number of the element."""
    reason: str


class CleaningSample(_Part):
    """A row that a cleaning step changed or left out."""

    file: str
    row: int
    """1-based, as in `DroppedRow`."""
    before: str = ""
    """Excerpt of what the step found; empty where the row holds something masked."""
    after: str | None = None
    """Excerpt of what it made of it; None where it left the row out."""
    resembles: str | None = None
    """file:row of the row that stays in place of a near-duplicate."""


class CleaningStep(_Part):
    """What a step of `data.clean` did to all rows that were read."""

    changed: int = 0
    """Rows."""
    dropped: int = 0
    """Rows left out; they are also counted in `Manifest.dropped`."""
    samples: list[CleaningSample] = Field(default_factory=list)
    """The first 20 of them."""


class SourceInfo(_Part):
    """A raw file as it was when it was read."""

    split: str
    """The setting that named it: train, eval, test, or mix1, mix2, ... for the sets of mix."""
    file: str
    bytes: int
    sha256: str


class Manifest(_Part):
    """Prepared data as a whole."""

    schema_version: int = SCHEMA_VERSION
    key: str
    """Hash of all that the shards depend on."""
    task: str
    format: str
    columns: dict[str, str]
    labels: list[str]
    """Class names in id order; empty for tasks without classes."""
    cutoff_len: int
    tokenizer: TokenizerInfo
    splits: dict[str, SplitInfo]
    """`train` holds the rows of `data.train`, then those of each set of `data.mix`."""
    training_sets: list[TrainingSet] = Field(default_factory=list)
    """Where `data.mix` names any: whose rows stand in `train`, in their order."""
    tokenized_rows: int = 0
    """Rows tokenized to make them, over all attempts: where one was interrupted, some twice."""
    dropped: dict[str, int]
    """Rows in no split, by reason."""
    dropped_rows: list[DroppedRow]
    """The first 1,000 of them."""
    cleaning: dict[str, CleaningStep] = Field(default_factory=dict)
    """What each step of `data.clean` that did anything did."""
    sources: list[SourceInfo]
    unread_files: list[str] = Field(default_factory=list)
    """What else lies in the folders that were named."""

    def summary(self) -> dict[str, Any]:
        """Return what people look for, in their words: no single rows, shards or hashes."""
        cleaning = {
            name: f"{step.changed:,} changed, {step.dropped:,} left out"
            for name, step in self.cleaning.items()
        }
        return {
            "key": self.key,
            "task": self.task,
            "format": self.format,
            "columns": self.columns,
            **({"labels": self.labels} if self.labels else {}),
            "cutoff_len": self.cutoff_len,
            "tokenizer": self.tokenizer.name,
            "splits": {name: info.said() for name, info in self.splits.items()},
            "tokenized_rows": self.tokenized_rows,
            "dropped": self.dropped,
            "cleaning": cleaning,
            "sources": [source.file for source in self.sources],
            "unread_files": self.unread_files,
        }


def save_manifest(root: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the shards beside it valid.

    Args:
        root: Folder of the shards.
        manifest: What they hold.
    """
    write_text(root / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def log_preparation(root: Path, manifest: Manifest, duration_s: float) -> None:
    """Append to the log that prepared data were made; who finds them made appends nothing.

    Args:
        root: Folder of the shards.
        manifest: What they hold.
        duration_s: What the last attempt took.
    """
    line = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "key": manifest.key,
        "task": manifest.task,
        "rows": sum(info.rows for info in manifest.splits.values()),
        "tokenized_rows": manifest.tokenized_rows,
        "duration_s": round(duration_s, 3),
    }
    # One write: preparations of other data may end at the same time.
    with (root.parent / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def load_manifest(root: Path, verify: bool = True) -> Manifest:
    """Return the manifest of prepared data.

    Args:
        root: Folder of the shards.
        verify: Also compare size and SHA-256 of every shard.

    Returns:
        The manifest.

    Raises:
        DataError: There is none, it is of another version, or a shard differs from it.
    """
    path = root / MANIFEST_FILE
    remedy = _REMEDY.format(root=root)
    if not path.is_file():
        raise DataError(f"{root} holds no prepared data: {MANIFEST_FILE} is missing.", remedy)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} is no manifest: {error.errors()[0]['msg']}.", remedy) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {manifest.schema_version}, not {SCHEMA_VERSION}.", remedy
        )
    if verify:
        for info in manifest.splits.values():
            for shard in info.shards:
                _verify(root / shard.file, shard, remedy)
    return manifest


def _verify(path: Path, shard: Shard, remedy: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing.", remedy)
    size_bytes = path.stat().st_size
    if size_bytes != shard.bytes:
        raise DataError(f"{path} has {size_bytes} bytes, its manifest says {shard.bytes}.", remedy)
    if file_sha256(path) != shard.sha256:
        raise DataError(f"{path} differs from what was written: its SHA-256 is another.", remedy)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
