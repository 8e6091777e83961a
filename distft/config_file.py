"""YAML + overrides -> RunConfig, with errors that name file, line and the nearest valid key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distft import plugin
from distft.config import RunConfig, nearest
from distft.errors import ConfigError

Place = Callable[[tuple[Any, ...]], str]
"""Key path -> where it stands (file and line, or which override), for messages."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as a number, which YAML 1.1 does not, and refuses key twins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration in a YAML file with overrides applied.

    Args:
        path: The YAML file.
        overrides: `dotted.path=value` each; the value is read as YAML.

    Returns:
        The validated configuration; `name` is filled in.

    Raises:
        ConfigError: No such file, broken YAML, an unknown key, a wrong type or value. The text
            names file and line, the key, what was got, what is allowed and the nearest key.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"There is no config file {path}.", "`distft init` writes a starter config.")
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=_Loader)
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}:{line}: not valid YAML: {problem}.", "Check the indent.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}:1: must be a mapping of keys, got {_said(raw)}.")
    for text in overrides:
        _apply_override(raw, text)
    stem = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "run"
    if raw.get("name") is None:
        raw["name"] = stem[:63]
    overridden = {text.split("=", 1)[0] for text in overrides}
    return parse(raw, lambda key: _place(path, node, key, overridden))


def parse(raw: Mapping[str, Any], place: Place = lambda key: "config") -> RunConfig:
    """Return the configuration in plain data.

    Args:
        raw: As YAML holds it.
        place: Key path (a tuple) -> where it stands, for messages.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: An unknown key, a wrong type or an impossible value; up to five at once.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(raw, item, place) for item in error.errors()]
        unique = list(dict.fromkeys(lines))[:5]
        raise ConfigError(
            "\n".join(unique), "`distft schema` lists every key; `distft init` writes an example."
        ) from error


def _apply_override(raw: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", key):
        raise ConfigError(
            f"{text!r} is not an override: write KEY=VALUE, such as train.max_steps=50."
        )
    *parents, leaf = key.split(".")
    target = raw
    for parent in parents:
        child = target.get(parent)
        if isinstance(child, str):
            child = {"id" if parent == "model" else "name": child}
        target[parent] = child if isinstance(child, dict) else {}
        target = target[parent]
    try:
        target[leaf] = yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of the override {text!r} is not valid YAML.") from error


def _place(path: Path, node: yaml.Node, key: tuple[Any, ...], overridden: set[str]) -> str:
    dotted = ".".join(str(part) for part in key)
    if any(dotted == name or dotted.startswith(name + ".") for name in overridden):
        return f"override {dotted}"
    line = node.start_mark.line
    for part in key:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for name, value in pairs:
            if name.value == str(part):
                node, line = value, name.start_mark.line
                break
        else:
            break
    return f"{path}:{line + 1}"


def _explain(raw: Mapping[str, Any], error: Any, place: Place) -> str:
    # Union members and tags appear in pydantic's location; only what the user wrote is a key.
    key = tuple(_written(raw, error["loc"]))
    dotted = ".".join(str(part) for part in key)
    where = place(key)
    if error["type"] == "extra_forbidden":
        known = _keys_at(key[:-1], raw)
        return (
            f"{where}: {dotted}: unknown key{nearest(str(key[-1]), known)}; "
            f"allowed here: {', '.join(known)}."
        )
    if error["type"] == "missing":
        wanted = ".".join(str(part) for part in error["loc"])
        return f"{where}: {wanted}: this key is required."
    message = error["msg"].removeprefix("Value error, ").removesuffix(".")
    got = error["input"]
    return f"{where}: {dotted or 'config'}: {message[0].lower() + message[1:]}; got {_said(got)}."


def _written(raw: Any, loc: Sequence[Any]) -> Iterator[Any]:
    for part in loc:
        if isinstance(raw, Mapping) and part in raw:
            yield part
            raw = raw[part]
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            yield part
            raw = raw[part]
        else:
            return


def _keys_at(path: Sequence[Any], raw: Mapping[str, Any]) -> list[str]:
    if path and path[0] in ("method", "task"):
        chosen = raw[path[0]]
        known: Mapping[str, Any] = plugin.methods() if path[0] == "method" else plugin.tasks()
        return list(known[chosen["name"]].config.model_fields)
    model: Any = RunConfig
    for part in path:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)


def _said(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
