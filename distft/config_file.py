"""YAML + overrides -> RunConfig, with errors that name file, line and the nearest valid key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distft.config import DEFAULT_METHOD, VARIANT_KEYS, RunConfig, variants
from distft.errors import ConfigError, nearest

MOST_ERRORS = 5
SHORTHAND = {"model": "id", "method": "name", "task": "name"}
"""Section that may be written as one word -> the key that word stands for."""

PLAIN_WORDS = {
    "model_type": "must be a section, that is keys and values",
    "dict_type": "must be a section, that is keys and values",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}
"""pydantic's error type -> the same without Python's words."""

Place = Callable[[tuple[Any, ...]], str]
"""Key path -> where it stands (file and line, or which override), for messages."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as a number, which YAML 1.1 does not, and refuses key twins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
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
    node, raw = _compose(path)
    for override in overrides:
        _apply_override(raw, override)
    if "name" not in raw:
        stem = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")
        raw["name"] = stem[:63] or "run"
    overridden = {override.split("=", 1)[0] for override in overrides}
    return parse(raw, lambda key: _place(path, node, key, overridden))


def read(path: Path) -> dict[str, Any]:
    """Return a YAML file as plain data, whatever its keys.

    Args:
        path: The file.

    Returns:
        Its mapping; `1e-4` is a number.

    Raises:
        ConfigError: No such file, broken YAML, a key that stands twice, or no mapping.
    """
    return _compose(path)[1]


def _compose(path: Path) -> tuple[yaml.Node, dict[str, Any]]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(
            f"The config file {path} {what}.", "`distft init` writes a starter config."
        )
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        raw = yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The config file {path} cannot be read as UTF-8 text: {error}."
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: {error.problem or error}.",
            "Check the indentation, the colons and the quotes there.",
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        # A ValueError is a scalar that looks like a date or a number and is none.
        raise ConfigError(f"{path}: not valid YAML: {error}.") from error
    if node is None or not isinstance(raw, dict):
        raise ConfigError(
            f"{path}:1: must be a mapping of keys, got {_said(raw)}.",
            "`distft init` writes a starter config.",
        )
    return node, raw


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
        lines = list(_explain(raw, _flat(error.errors()), place))
        more = f"\n... and {len(lines) - MOST_ERRORS} more" if len(lines) > MOST_ERRORS else ""
        raise ConfigError(
            "\n".join(lines[:MOST_ERRORS]) + more,
            "`distft schema` lists every key; `distft init` writes an example.",
        ) from error


def _apply_override(raw: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", key):
        raise ConfigError(
            f"{text!r} is not an override: write KEY=VALUE, such as train.max_steps=50."
        )
    *parents, leaf = key.split(".")
    target = raw
    for depth, parent in enumerate(parents):
        child = target.get(parent)
        if depth == 0 and isinstance(child, str) and parent in SHORTHAND:
            child = {SHORTHAND[parent]: child}
        if child is not None and not isinstance(child, dict):
            raise ConfigError(
                f"the override {text!r} sets a key of {parent}, but {parent} is {_said(child)}."
            )
        # A copy: YAML anchors let several keys share one mapping.
        target[parent] = dict(child or {})
        target = target[parent]
    try:
        target[leaf] = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"the value of the override {text!r} is not valid YAML.",
            "Quote it, such as 'data.train=\"a: b.csv\"'.",
        ) from error


def _place(path: Path, node: yaml.Node, key: tuple[Any, ...], overridden: set[str]) -> str:
    dotted = ".".join(str(part) for part in key)
    if any(dotted == name or dotted.startswith(name + ".") for name in overridden):
        return "override"
    line = node.start_mark.line
    for part in key:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next((pair for pair in pairs if pair[0].value == str(part)), None)
        if found is None:
            # An override made it, or a YAML merge key, which has no line of its own.
            made = any(name.startswith(dotted + ".") for name in overridden)
            return "override" if made else f"{path}:{line + 1}"
        node, line = found[1], found[0].start_mark.line
    return f"{path}:{line + 1}"


def _flat(errors: Sequence[Any]) -> Iterator[Any]:
    for error in errors:
        if error["type"] == VARIANT_KEYS:
            for inner in error["ctx"]["errors"]:
                yield {**inner, "loc": (*error["loc"], *inner["loc"])}
        else:
            yield error


def _explain(raw: Mapping[str, Any], errors: Iterable[Any], place: Place) -> Iterator[str]:
    """Yield one line per wrong key; a key of several types is wrong for several reasons."""
    by_key: dict[tuple[Any, ...], list[Any]] = {}
    for error in errors:
        # Union members and tags appear in pydantic's location; only what the user wrote is a key.
        written = tuple(_written(raw, error["loc"]))
        missing = error["type"] == "missing"
        by_key.setdefault(error["loc"] if missing else written, []).append(error)
    for key, found in by_key.items():
        dotted = ".".join(str(part) for part in key) or "config"
        if found[0]["type"] == "missing":
            yield f"{place(key[:-1])}: {dotted}: this key is required."
        elif found[0]["type"] == "extra_forbidden":
            known = _keys_at(key[:-1], raw)
            yield (
                f"{place(key)}: {dotted}: unknown key{nearest(str(key[-1]), known)}; "
                f"allowed here: {', '.join(known)}."
            )
        else:
            reasons = " or ".join(dict.fromkeys(_reason(error) for error in found))
            got = "" if reasons.startswith("unknown") else f"; got {_said(found[0]['input'])}"
            yield f"{place(key)}: {dotted}: {reasons}{got}."


def _reason(error: Any) -> str:
    if error["type"] in PLAIN_WORDS:
        return PLAIN_WORDS[error["type"]]
    if error["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        near = nearest(error["input"], allowed) if isinstance(error["input"], str) else ""
        return f"must be {error['ctx']['expected']}{near.rstrip('?')}"
    message: str = error["msg"].removeprefix("Value error, ").rstrip(".")
    message = message.replace("Input should be", "must be").replace("a valid ", "a ")
    return message[0].lower() + message[1:]


def _written(raw: Any, loc: Sequence[Any]) -> Iterator[Any]:
    for part in loc:
        if not (isinstance(raw, Mapping) and part in raw):
            return
        yield part
        raw = raw[part]


def _keys_at(path: Sequence[Any], raw: Mapping[str, Any]) -> list[str]:
    if path and path[0] in ("method", "task"):
        chosen = raw[path[0]].get("name", DEFAULT_METHOD)
        return list(variants(path[0])[chosen].config.model_fields)
    model: Any = RunConfig
    for part in path:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)


def _said(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
