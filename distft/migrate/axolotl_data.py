"""axolotl: its lists of data sets -> `data.train` and its kin, and the task they make."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distft.migrate import datasets
from distft.migrate.datasets import Rows
from distft.migrate.rules import Outcome, Theirs, decided, mapped, missing, names, wrong

_LISTS = ("datasets", "pretraining_dataset", "test_datasets")
_READERS = ("json", "csv", "parquet", "arrow", "text")
"""`path` of a data set that is only its data_files."""
_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")
_CHATS = ("chat_template", "sharegpt")
_TURNS = {("role", "content"): "messages", ("from", "value"): "sharegpt"}
"""Names of who speaks and what they say in a turn -> our format."""
_FIELDS = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
}
"""Their name of a column in a type that is a section -> our role."""


class UnusableError(Exception):
    """A data set that distft cannot train on; the text says why."""


def split(value: Any, theirs: Theirs) -> Outcome:
    """Return which part of a data set is read."""
    if value == "train":
        return missing("all rows of the files are read; of a hub repository name the files")
    return wrong("name the files of that split as path, or as data_files")


def of_path(value: Any, theirs: Theirs) -> Outcome:
    """Return that a key is read together with its path."""
    return mapped("read with its path")


def of_columns(value: Any, theirs: Theirs) -> Outcome:
    """Return that a key is read together with its type."""
    return mapped("read with its type: data.format, data.columns")


def rows_are_named(value: Any, theirs: Theirs) -> Outcome:
    """Return whether any rows are named: sets are flat keys, so that their list is never there."""
    lists = ("datasets[", "pretraining_dataset[")
    if any(key.startswith(lists) and key.endswith("].path") for key in theirs.keys):
        return mapped()
    if isinstance(theirs.get("pretraining_dataset"), str):
        return wrong("write pretraining_dataset as a list: - path: ...")
    return wrong("it names no rows to train on")


def train_sets(value: Any, theirs: Theirs) -> Outcome:
    """Return the training rows, the same for each of their sets."""
    if theirs.get("datasets[0].path") and theirs.get("pretraining_dataset[0].path"):
        return wrong("datasets and pretraining_dataset are both set; leave one of them out")
    return _sets("pretraining_dataset" if _pretrains(theirs) else "datasets", "train", theirs)


def eval_sets(value: Any, theirs: Theirs) -> Outcome:
    """Return the eval rows, the same for each of their sets."""
    return _sets("test_datasets", "eval", theirs)


def set_type(value: Any, theirs: Theirs) -> Outcome:
    """Return the task, and how the prompt is written where the type of a set says it."""
    if pretraining(theirs):
        return mapped("texts: format text", task="causal_lm")
    kinds = {_kind(one) for name in _LISTS for one in _sections(theirs, name)}
    if _kind({"type": value}) == "alpaca" and not theirs.get("chat_template"):
        if len(kinds) > 1:
            return wrong("sets are written in several ways: alpaca and by the chat template")
        return decided(
            "Alpaca's headings, without its fixed first sentence",
            task="sft",
            data__template="alpaca",
        )
    if isinstance(value, Mapping) and set(value) - _FIELDS.keys():
        rest = ", ".join(sorted(set(value) - _FIELDS.keys()))
        return decided(f"the chat template writes the prompt; without {rest}", task="sft")
    return mapped("read with its path: data.format, data.columns", task="sft")


def _pretrains(theirs: Theirs) -> bool:
    return any(key.startswith("pretraining_dataset[") for key in theirs.keys)


def pretraining(theirs: Theirs) -> bool:
    """Return whether texts are learnt, not answers."""
    kinds = [_kind(one) for one in _sections(theirs, "datasets")]
    return _pretrains(theirs) or (bool(kinds) and all(kind == "completion" for kind in kinds))


def _sections(theirs: Theirs, name: str) -> list[Mapping[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for key, value in theirs.keys.items():
        told = re.fullmatch(rf"{name}\[(\d+)\]\.(.+)", key)
        if told and value is not None:
            found.setdefault(int(told[1]), {})[told[2]] = value
    return [found[place] for place in sorted(found)]


def _kind(section: Mapping[str, Any]) -> str:
    """Return the kind of rows: alpaca, fields, completion, a chat or what they call it."""
    value = section.get("type")
    if isinstance(value, Mapping):
        return "fields"
    name = str(value)
    return "fields" if name.startswith("alpaca_chat.load_qa") else name.partition(":")[0]


def _sets(name: str, key: str, theirs: Theirs) -> Outcome:
    try:
        return datasets.outcome(
            key, [rows for one in _sections(theirs, name) for rows in _rows(one, theirs, name)]
        )
    except UnusableError as error:
        return wrong(str(error))


def _rows(section: Mapping[str, Any], theirs: Theirs, name: str) -> Iterator[Rows]:
    form, columns = _format(section, pretraining=name == "pretraining_dataset")
    for spec, notes in _specs(section, theirs):
        yield Rows(str(section.get("path")), spec, form, columns, notes)


def _format(section: Mapping[str, Any], pretraining: bool) -> tuple[str, Mapping[str, str]]:
    kind, value = _kind(section), section.get("type")
    if pretraining or kind in ("completion", "pretrain"):
        return "text", {"text": str(section.get("field", section.get("text_column", "text")))}
    if kind == "alpaca":
        return "alpaca", {}
    if kind == "fields":
        given = value if isinstance(value, Mapping) else {}
        named = {ours: str(given[key]) for key, ours in _FIELDS.items() if given.get(key)}
        if not isinstance(value, Mapping):
            named = {"instruction": "question", "output": "answer"}
        return "alpaca", named
    if kind not in _CHATS:
        raise UnusableError(
            f"{section.get('path')} is of type {value}: distft reads alpaca, chat_template, "
            "sharegpt and completion; write its rows as one of `distft formats`"
        )
    keys = section.get("message_property_mappings")
    keys = keys if isinstance(keys, Mapping) else {}
    usual = ("from", "value") if kind == "sharegpt" else ("role", "content")
    turn = (
        str(keys.get("role", section.get("message_field_role", usual[0]))),
        str(keys.get("content", section.get("message_field_content", usual[1]))),
    )
    if turn not in _TURNS:
        raise UnusableError(
            f"{section.get('path')}: a turn is {{{', '.join(turn)}}}; distft reads "
            f"{' or '.join(f'{{{a}, {b}}}' for a, b in _TURNS)}"
        )
    form = _TURNS[turn]
    role = "messages" if form == "messages" else "conversations"
    usual_column = "conversations" if kind == "sharegpt" else "messages"
    return form, {role: str(section.get("field_messages", usual_column))}


def _specs(section: Mapping[str, Any], theirs: Theirs) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each path or address of a set, and what is not the same."""
    path, files = str(section.get("path", "")), section.get("data_files")
    if files and (path in _READERS or theirs.find(path) is None):
        whole = path if path not in _READERS and "://" not in path else None
        for file in names(files):
            yield _spec(f"{datasets.hub(whole)}/{file}" if whole else file, theirs)
    elif files:
        for file in names(files):
            yield _spec(str(Path(path) / file), theirs)
    else:
        yield _spec(path, theirs, section.get("name"))


def _spec(path: str, theirs: Theirs, config: Any = None) -> tuple[str, tuple[str, ...]]:
    if "://" in path:
        return path, ()
    given = theirs.dataset_dir / path if theirs.dataset_dir else None
    found = given if given is not None and given.exists() else theirs.find(path)
    if found is not None:
        return datasets.local(found), ()
    if path.endswith(_SUFFIXES) or path.startswith((".", "/", "~")):
        return path, (f"{path} is not on this machine",)
    there = f" (there: {config})" if config else ""
    return datasets.hub(path), (f"{path}: {datasets.HUB_FILES}{there}",)
