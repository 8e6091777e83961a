"""LLaMA-Factory's `dataset_info.json`: names of data sets -> files, formats and columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distft.errors import ConfigError, nearest
from distft.migrate import datasets
from distft.migrate.datasets import Rows
from distft.migrate.rules import Theirs, names

FILE = "dataset_info.json"
_MEDIA = ("images", "videos", "audios")
_PREFERENCES = ("chosen", "rejected", "kto_tag")
_SHAREGPT = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Their tags where an entry names none; format sharegpt reads just these."""
_MESSAGES = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_ALPACA = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
}


class UnusableError(Exception):
    """A data set that distft cannot train on; the text says why."""


def folder(theirs: Theirs) -> Path:
    """Return the folder of their data sets.

    Args:
        theirs: Their config.

    Returns:
        What the command line gives, else what the config names, else their default, `data`.

    Raises:
        ConfigError: There is none with a dataset_info.json.
    """
    named = theirs.get("dataset_dir", "data")
    found = theirs.dataset_dir or theirs.find(str(named))
    if found is None or not (found / FILE).is_file():
        where = found or f"dataset_dir {named}"
        raise ConfigError(
            f"{where} holds no {FILE} that can be read here, which says what the names of data "
            f"sets in {theirs.path} stand for.",
            "Give the folder that does: --dataset-dir DIR.",
        )
    return found


def read(theirs: Theirs, key: str, pretraining: bool) -> list[Rows]:
    """Return the data sets that a key names.

    Args:
        theirs: Their config.
        key: `dataset` or `eval_dataset`.
        pretraining: Whether texts are learnt, not answers.

    Returns:
        One for each name, in order.

    Raises:
        ConfigError: There is no dataset_info.json.
        UnusableError: A name is not in it, or its data set is of no use here.
    """
    root, info = _info(theirs, key)
    found = []
    for name in names(theirs.get(key)):
        entry = info.get(name) if isinstance(info, Mapping) else None
        if not isinstance(entry, Mapping):
            raise UnusableError(
                f"{root / FILE} holds no data set {name!r}{nearest(name, info)}; --dataset-dir "
                "names the folder of another one"
            )
        found.append(_rows(name, entry, root, pretraining))
    if not found:
        raise UnusableError("it names no data set")
    return found


def _info(theirs: Theirs, key: str) -> tuple[Path, Any]:
    """Return the folder of the data sets, and what is known of each."""
    if theirs.get("dataset_dir") == "ONLINE" and theirs.dataset_dir is None:
        return Path(), {name: {"hf_hub_url": name} for name in names(theirs.get(key))}
    root = folder(theirs)
    try:
        return root, json.loads((root / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{root / FILE} cannot be read as JSON: {error}.") from error


def _rows(name: str, entry: Mapping[str, Any], root: Path, pretraining: bool) -> Rows:
    columns = entry.get("columns") or {}
    media = [kind for kind in _MEDIA if columns.get(kind)]
    if media:
        raise UnusableError(f"{name} has {', '.join(media)}; distft learns from text")
    if entry.get("ranking") or any(columns.get(one) for one in _PREFERENCES):
        raise UnusableError(f"{name} holds preferences, from which distft does not learn")
    spec, notes = _spec(name, entry, root)
    form, mine = _format(name, entry, pretraining)
    if pretraining and columns.get("query", "input" if not columns else None):
        notes.append(f"{name}: only its prompt column is learnt here, without the query")
    return Rows(name, spec, form, mine, notes)


def _spec(name: str, entry: Mapping[str, Any], root: Path) -> tuple[str, list[str]]:
    """Return where the rows lie, and what is not the same."""
    notes = []
    if entry.get("num_samples"):
        notes.append(f"{name}: all rows, there {entry['num_samples']}")
    if entry.get("hf_hub_url"):
        parts = [f"{key} {entry[key]}" for key in ("subset", "split", "folder") if entry.get(key)]
        notes.append(
            f"{name}: {datasets.HUB_FILES}" + (f" (there: {', '.join(parts)})" if parts else "")
        )
        return datasets.hub(str(entry["hf_hub_url"])), notes
    if entry.get("cloud_file_name"):
        return str(entry["cloud_file_name"]), notes
    if not entry.get("file_name"):
        raise UnusableError(f"{name} comes by {', '.join(entry)}, not from a file or the hub")
    path = root / str(entry["file_name"])
    if not path.exists():
        notes.append(f"{name}: {path} is not on this machine")
    return datasets.local(path), notes


def _format(
    name: str, entry: Mapping[str, Any], pretraining: bool
) -> tuple[str, Mapping[str, str]]:
    """Return the format and its columns, role by role."""
    columns: Mapping[str, str] = entry.get("columns") or {}
    formatting = entry.get("formatting", "alpaca")
    if formatting == "alpaca":
        # Columns that an entry with `columns` leaves out do not exist for it.
        held = {role: columns.get(role) for role in _ALPACA} if columns else _ALPACA
        if pretraining:
            return "text", {"text": held["prompt"] or "instruction"}
        return _instruction(held)
    if pretraining:
        raise UnusableError(f"{name} holds conversations; pre-training learns from texts")
    tags = {**_SHAREGPT, **(entry.get("tags") or {})}
    # Turns of these names are there only where the entry says so.
    explicit = entry.get("tags") or {}
    chat = {key: tags[key] for key in _MESSAGES}
    messages = columns.get("messages") or "conversations"
    if chat == {**_MESSAGES} and not {"observation_tag", "function_tag"} & explicit.keys():
        return "messages", {"messages": messages}
    if formatting == "openai":
        return "messages", {"messages": columns.get("messages") or "messages"}
    if tags != _SHAREGPT:
        other = [f"{key} {value}" for key, value in tags.items() if _SHAREGPT[key] != value]
        raise UnusableError(f"{name} tags its turns otherwise ({', '.join(other)})")
    roles = {"conversations": messages}
    roles |= {role: columns[role] for role in ("system", "tools") if columns.get(role)}
    return "sharegpt", roles


def _instruction(held: Mapping[str, str | None]) -> tuple[str, Mapping[str, str]]:
    """Return the format that reads just these columns and no others by their usual names."""
    given = {role: name for role, name in held.items() if name}
    prompt, response = given.get("prompt", "instruction"), given.get("response", "output")
    if "query" in given:
        roles = {"instruction": prompt, "input": given["query"], "output": response}
    elif given.keys() & {"system", "history"}:
        roles = {"query": prompt, "response": response}
    else:
        return "prompt_completion", {"prompt": prompt, "completion": response}
    roles |= {role: given[role] for role in ("system", "history") if role in given}
    return ("alpaca" if "query" in given else "query_response"), roles


def shares(value: Any, count: int) -> Sequence[float]:
    """Return the shares of every set but the first.

    Args:
        value: Their `interleave_probs`; None: equal ones.
        count: How many sets there are.

    Returns:
        Multiples of 0.0001.
    """
    given = [float(one) for one in names(value)] if value is not None else [1 / count] * count
    whole = sum(given) or 1
    return [round(one / whole, 4) for one in given[1:]]
