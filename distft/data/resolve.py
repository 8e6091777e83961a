"""What the data settings mean: sources, format, task, columns, length, and the prepared key.

Loads no Ray: `plan` needs the same answers as `prepare`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from distft import hf, plugin
from distft.config import RunConfig
from distft.config_sections import CleanConfig, DataConfig, ModelConfig
from distft.data import files, source
from distft.data.rows import read_chunk
from distft.data.source import SourceFile
from distft.data.split import SPLITS, Part, Split, parts_of
from distft.errors import ConfigError, DataError, nearest
from distft.plugin import EncodeContext, Format, Task, UnusableRow

DATA_VERSION = 5
"""Raised when prepared data of an earlier version must not be used any more."""

DEFAULT_CUTOFF_LEN = 512

_ROWS_TO_DETECT = 50

Sources = Mapping[Part, Sequence[SourceFile]]
"""The scanned files of each part that comes from files."""


def specs(data: DataConfig) -> dict[Part, str | list[str]]:
    """Return what names the files of each part that is given as files.

    Args:
        data: The data settings.

    Returns:
        `train`, `eval` and `test` where they are no share, then the mixed sets.
    """
    named = [data.train, data.eval, data.test, *data.mix]
    parts = zip(parts_of(len(data.mix)), named, strict=True)
    return {part: spec for part, spec in parts if not isinstance(spec, float)}


def sources(data: DataConfig) -> dict[Part, list[SourceFile]]:
    """Return the files of each part that is given as files.

    Args:
        data: The data settings.

    Returns:
        Files by part, in the order of the parts.

    Raises:
        DataError: A file is missing, empty or of no supported kind, or in two sets of `data.mix`.
    """
    found: dict[Part, list[SourceFile]] = {}
    mixed: set[str] = set()
    for part, spec in specs(data).items():
        if part in SPLITS:
            paths = files.expand(spec, f"data.{part}")
        else:
            paths = files.expand(spec, "data.mix")
            for path in mixed.intersection(paths):
                raise DataError(
                    f"data.mix: {path} is in two of the sets.", "Name it once, with both shares."
                )
            mixed.update(paths)
        found[part] = source.scan(paths)
    return found


def shares(data: DataConfig) -> dict[Split, float]:
    """Return the share of each split that is cut from the training files.

    Args:
        data: The data settings.

    Returns:
        Share by split; empty when eval and test both come from files.

    Raises:
        ConfigError: The shares leave nothing to train on.
    """
    found: dict[Split, float] = {
        split: value for split in SPLITS if isinstance(value := getattr(data, split), float)
    }
    if sum(found.values()) >= 1:
        raise ConfigError(
            f"data.eval {data.eval} and data.test {data.test} together leave nothing to train on.",
            "Their shares must sum to less than 1; 0.1 each is the default.",
        )
    return found


def columns_of(form: Format, data: DataConfig) -> dict[str, str]:
    """Return role -> column name of a format with the user's names applied.

    Args:
        form: The format.
        data: The data settings.

    Returns:
        Every role of the format.

    Raises:
        ConfigError: `data.columns` names a role the format does not have.
    """
    for role in data.columns:
        if role not in form.columns:
            raise ConfigError(
                f"data.columns.{role}: format {form.name} has no such role"
                f"{nearest(role, form.columns)}; its roles: {', '.join(form.columns)}.",
                "`distft formats` shows the roles of every format.",
            )
    return {**form.columns, **data.columns}


def detect(config: RunConfig) -> tuple[str, str]:
    """Return the names of the format and the task, read from the first rows where not set.

    Args:
        config: The configuration.

    Returns:
        (format name, task name).

    Raises:
        ConfigError: Several or none fit, or the set ones do not go together.
        DataError: The training files cannot be read.
    """
    format_name = config.data.format or detect_format(config)
    form = plugin.formats()[format_name]
    columns_of(form, config.data)
    if config.task is None:
        fitting = [task.name for task in plugin.tasks().values() if form.row in task.rows]
        if len(fitting) != 1:
            raise ConfigError(
                f"task: {len(fitting)} tasks learn from rows of format {format_name}: "
                f"{', '.join(fitting)}.",
                f"Name one, such as `task: {fitting[0]}`." if fitting else "",
            )
        check_conversation_keys(config.data, plugin.tasks()[fitting[0]])
        return format_name, fitting[0]
    task = plugin.tasks()[config.task.name]
    check_conversation_keys(config.data, task)
    if form.row not in task.rows:
        fitting = [f.name for f in plugin.formats().values() if f.row in task.rows]
        raise ConfigError(
            f"task {task.name} learns from {' or '.join(task.rows)} rows, format {format_name} "
            f"gives {form.row}.",
            f"Formats for this task: {', '.join(fitting)}.",
        )
    return format_name, task.name


def check_conversation_keys(data: DataConfig, task: Task) -> None:
    """Raise ConfigError where keys that say how conversations are written go with another task."""
    if "conversation" in task.rows:
        return
    for key in ("template", "train_on_prompt"):
        if getattr(data, key):
            raise ConfigError(
                f"data.{key}: task {task.name} reads no conversations.",
                f"Leave data.{key} out, or name a task that does, such as `task: sft`.",
            )


def detect_format(config: RunConfig) -> str:
    """Return the name of the one format that the first rows of `data.train` have.

    Args:
        config: The configuration; a task in it rules formats out.

    Returns:
        The format.

    Raises:
        ConfigError: Several or none fit.
        DataError: The files cannot be read.
    """
    rows = first_rows(config.data)
    kinds = None if config.task is None else plugin.tasks()[config.task.name].rows
    forms = [form for form in plugin.formats().values() if kinds is None or form.row in kinds]
    able = [form for form in forms if set(config.data.columns) <= set(form.columns)]
    found = fitting(rows, able, config.data)
    if not found and config.task is not None:
        # The task rules out what detection must tell apart, such as classes 1 to 5 from scores.
        found = [form.name for form in able if readable(rows, form, config.data)]
    if len(found) == 1:
        return found[0]
    if not found:
        _check_columns(config.data, forms, rows)
    wanted = "; ".join(
        f"{form.name} reads {', '.join(columns_of(form, config.data).values())}"
        if form in able
        else f"{form.name} has the roles {', '.join(form.columns)}"
        for form in forms
    )
    got = ", ".join(map(str, rows[0]))
    problem = f"fit several formats ({', '.join(found)})" if found else "fit no format"
    raise ConfigError(
        f"data.format: the first rows of {config.data.train} hold the fields {got} and {problem}. "
        f"{wanted}.",
        "Set data.format, or data.columns such as {text: review, label: stars}.",
    )


def _check_columns(
    data: DataConfig, forms: Sequence[Format], rows: Sequence[Mapping[str, Any]]
) -> None:
    roles = dict.fromkeys(role for form in forms for role in form.columns)
    held = dict.fromkeys(str(column) for row in rows for column in row)
    for role, column in data.columns.items():
        if role not in roles:
            raise ConfigError(
                f"data.columns: no format has the role {role!r}{nearest(role, roles)}; allowed: "
                f"{', '.join(roles)}.",
                "Write it as role: column, such as {text: review, label: stars}.",
            )
        if column not in held:
            raise ConfigError(
                f"data.columns.{role}: the first rows of {data.train} hold no column "
                f"{column!r}{nearest(column, held)}; they hold {', '.join(held)}."
            )


def fitting(
    rows: Sequence[Mapping[str, Any]], forms: Sequence[Format], data: DataConfig
) -> list[str]:
    """Return the names of the formats whose shape some of the rows have.

    Args:
        rows: Raw rows.
        forms: The formats to ask.
        data: The data settings, for their columns.

    Returns:
        Names in order, without formats that would leave unread what another one reads: two texts
        and a label are a pair, not a classification with a spare field.
    """
    used: dict[str, set[str]] = {}
    for form in forms:
        columns = columns_of(form, data)
        if any(form.detect(row, columns) for row in rows):
            used[form.name] = {c for c in columns.values() if any(c in row for row in rows)}
    return [name for name in used if not any(used[name] < other for other in used.values())]


def readable(rows: Sequence[Mapping[str, Any]], form: Format, data: DataConfig) -> bool:
    """Return whether a format reads any of the rows, with what is to be learnt."""
    columns = columns_of(form, data)
    for row in rows:
        with contextlib.suppress(UnusableRow):
            if columns[form.target] in row and form.read(row, columns):
                return True
    return False


def first_rows(data: DataConfig, key: str = "data.train") -> list[dict[str, Any]]:
    """Return rows of `data.train`, called `key` in messages: the first chunk's that holds any."""
    paths, error = files.expand(data.train, key), ""
    for path in paths:
        for chunk in source.scan([path])[0].chunks:
            raw = list(islice(read_chunk(chunk), _ROWS_TO_DETECT))
            rows = [row.value for row in raw if row.value is not None]
            if rows:
                return rows
            error = error or (raw[0].error if raw else "")
    raise DataError(
        f"{error}." if error else f"{paths[0]} holds no rows.",
        "Some rows at the beginning must be readable for the format to be detected.",
    )


def cutoff_len(config: RunConfig, *, stated: bool = False) -> int:
    """Return the longest sample in tokens, set or derived.

    Args:
        config: The configuration.
        stated: Take `model.shape` where there is one, and read no file.

    Returns:
        `data.cutoff_len`, or 512 or the model's own limit, whichever is smaller.

    Raises:
        ConfigError: It is longer than the model allows.
    """
    limit = hf.max_positions(config.model, stated=stated)
    wanted = config.data.cutoff_len
    if wanted is None:
        return DEFAULT_CUTOFF_LEN if limit is None else min(DEFAULT_CUTOFF_LEN, limit)
    if limit is not None and wanted > limit:
        raise ConfigError(
            f"data.cutoff_len: {wanted} tokens, but {config.model.id} takes at most {limit}.",
            f"Set data.cutoff_len to {limit} or less, or leave it out.",
        )
    return wanted


def context(config: RunConfig, labels: Sequence[str]) -> EncodeContext:
    """Return what the task of a configuration may know while it encodes rows.

    Args:
        config: The configuration.
        labels: Class names in id order.

    Returns:
        Length, classes and what of a conversation is trained on.

    Raises:
        ConfigError: The length is more than the model allows.
    """
    return EncodeContext(cutoff_len(config), labels, config.data.train_on_prompt)


def prepared_key(config: RunConfig, task: Task, format_name: str) -> str:
    """Return what the prepared data depend on, as one hash.

    Args:
        config: The configuration.
        task: The task that encodes the rows.
        format_name: The format that reads them.

    Returns:
        16 hexadecimal digits; equal when preparing again would give equal shards.

    Raises:
        ConfigError: The tokenizer or a length is wrong.
        DataError: A file is wrong.
    """
    data = config.data
    by_share = shares(data)
    parts = {
        "version": DATA_VERSION,
        "files": {split: source.content_hash(files) for split, files in sources(data).items()},
        "format": format_name,
        "columns": columns_of(plugin.formats()[format_name], data),
        "task": task.name,
        "shares": by_share,
        # Files alone leave nothing to draw: runs that differ in their seed share the shards.
        "seed": config.train.seed if by_share else None,
        "on_bad_row": data.on_bad_row,
        "max_samples": data.max_samples,
        "tokenizer": tokenizer_hash(config.model, data.template),
        "cutoff_len": cutoff_len(config),
        "train_on_prompt": data.train_on_prompt,
    }
    if data.clean != CleanConfig():
        # Their models and tables decide with which rows are left out and what is masked.
        versions = {name: version(name) for name in ("phonenumbers", "py3langid", "rensa")}
        parts["clean"] = [data.clean.model_dump(), versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_hash(model: ModelConfig, template: str | None = None) -> str:
    """Return the hash of a tokenizer's files, its chat template included.

    Args:
        model: Whose tokenizer.
        template: How it writes conversations; None: as its files say.

    Returns:
        64 hexadecimal digits; the same from the hub and from a folder.
    """
    return _tokenizer_hash(model.model_dump_json(), template)


@lru_cache(maxsize=8)
def _tokenizer_hash(model_json: str, template: str | None) -> str:
    tokenizer = hf.load_tokenizer(ModelConfig.model_validate_json(model_json), template)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if not path.is_file():
                continue
            content = path.read_bytes()
            if path.name == "tokenizer_config.json":
                # How it was found, not what it does.
                settings = json.loads(content)
                for key in ("is_local", "local_files_only", "backend", "name_or_path"):
                    settings.pop(key, None)
                content = json.dumps(settings, sort_keys=True).encode()
            digest.update(f"{path.name}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()
