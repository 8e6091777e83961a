"""A file of another program -> what each of its keys became, and a config that is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft import compat, config_file, plugin
from distft.config import RunConfig
from distft.errors import ConfigError, PlanError
from distft.migrate import axolotl, llamafactory, llamafactory_v1
from distft.migrate.rules import (
    NOT_SET,
    Entry,
    Outcome,
    Program,
    Rule,
    Theirs,
    missing,
    shown,
    unknown,
    without_secrets,
    wrong,
)

PROGRAMS = (llamafactory.PROGRAM, llamafactory_v1.PROGRAM, axolotl.PROGRAM)


@dataclass(frozen=True)
class Migration:
    """A config of another program and what it became."""

    program: str
    because: tuple[str, ...]
    """Keys it was told by."""
    source: Path
    config: Mapping[str, Any]
    """Ours, as YAML holds it."""
    entries: tuple[Entry, ...]
    """One for each of their keys, in their order."""
    implied: tuple[Entry, ...]
    """What the absence of a key means there and not here."""

    def of(self, verdict: str) -> list[Entry]:
        """Return the entries with a verdict."""
        return [entry for entry in self.entries if entry.outcome.verdict == verdict]

    def as_dict(self) -> dict[str, Any]:
        """Return it as the document that `--json` prints."""
        return {
            "program": self.program,
            "because": list(self.because),
            "file": str(self.source),
            "config": dict(self.config),
            **{
                verdict: [entry.as_dict() for entry in self.of(verdict)]
                for verdict in ("mapped", "decided", "absent")
            },
            "implied": [entry.as_dict() for entry in self.implied],
        }


def migrate(path: Path, dataset_dir: Path | None = None) -> Migration:
    """Return a distft config that stands for a config of another program.

    Args:
        path: Their YAML.
        dataset_dir: Where their data sets lie; default: as their config has it.

    Returns:
        The config, and what became of each key.

    Raises:
        ConfigError: The file cannot be read, is of no known program, or holds a value that ours
            does not allow.
        PlanError: It does not train, or trains what distft does not; the text names every such key.
    """
    raw = config_file.read(path)
    program, because = _told(path, raw)
    theirs = Theirs(dict(_flat(raw, program)), path, dataset_dir)
    entries = tuple(_entry(key, value, program, theirs) for key, value in theirs.keys.items())
    implied = tuple(
        Entry(key, None, outcome)
        for key, rule in program.implied.items()
        if theirs.get(key) is None
        and (outcome := _ruled(rule, key, None, program, theirs)).verdict != "mapped"
    )
    refused = [one for one in (*entries, *implied) if one.outcome.verdict == "refused"]
    if refused:
        raise PlanError(
            f"{path} ({program.name}) cannot be carried over:\n"
            + "".join(f"- {one.said}\n" for one in refused).rstrip("\n")
            + ".",
            "Keep that program for it, or take out what distft may train without.",
        )
    config, origin = _merged([*entries, *implied])
    _check(config, origin, path)
    return Migration(program.name, because, path, config, entries, implied)


def _told(path: Path, raw: Mapping[str, Any]) -> tuple[Program, tuple[str, ...]]:
    found = {one.name: tuple(sign for sign in one.signs if sign in raw) for one in PROGRAMS}
    program = max(PROGRAMS, key=lambda one: len(found[one.name]))
    if not found[program.name]:
        known = "; ".join(f"{one.name} by {', '.join(one.signs)}" for one in PROGRAMS)
        raise ConfigError(
            f"{path} is no config of {' or '.join(one.name for one in PROGRAMS)}: it has none of "
            f"the keys they are told by ({known}).",
            "Name the YAML that the training is started with.",
        )
    return program, found[program.name]


def _flat(raw: Mapping[str, Any], program: Program) -> Iterator[tuple[str, Any]]:
    """Yield every key, those of a section or of a list of sections that the table knows apart."""
    for key, value in raw.items():
        name = str(key)
        if isinstance(value, Mapping) and value and _has_parts(program, f"{name}."):
            yield from ((f"{name}.{inner}", one) for inner, one in value.items())
        elif isinstance(value, list) and _has_parts(program, f"{name}[]."):
            if not value:
                yield name, None
            for place, section in enumerate(value):
                if isinstance(section, Mapping) and section:
                    yield from ((f"{name}[{place}].{inner}", v) for inner, v in section.items())
                else:
                    yield f"{name}[{place}].path", section or None
        else:
            yield name, value


def _has_parts(program: Program, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in program.keys)


def _entry(key: str, value: Any, program: Program, theirs: Theirs) -> Entry:
    head, bracket, rest = key.partition("[")
    name = f"{head}[]{rest.partition(']')[2]}" if bracket else key
    shown_value = without_secrets(key, value)
    if value is None:
        outcome = Outcome("absent", NOT_SET)
    elif name in program.keys:
        outcome = _ruled(program.keys[name], key, value, program, theirs)
    elif _has_parts(program, f"{name}[]."):
        outcome = wrong("distft reads it as a list of sections")
    elif _has_parts(program, f"{name}."):
        outcome = missing("empty there") if value == {} else wrong("distft reads it as a section")
    else:
        outcome = unknown(name, program.keys)
    return Entry(key, shown_value, outcome)


def _ruled(rule: Rule, key: str, value: Any, program: Program, theirs: Theirs) -> Outcome:
    try:
        return rule(value, theirs)
    except (TypeError, ValueError, AttributeError) as error:
        # The rules read what their program allows; they check no types, also of keys beside theirs.
        got = shown(without_secrets(key, value))
        said = f"got {got}" if value is not None else "a key it goes with has a value"
        raise ConfigError(
            f"{theirs.path}: {key}: {said}, which {program.name} does not allow.",
            "Correct it first.",
        ) from error


def _merged(entries: list[Entry]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the nested config, and which of their keys set each of ours."""
    flat: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for entry in entries:
        for path, value in entry.outcome.sets.items():
            if flat.setdefault(path, value) != value:
                raise ConfigError(
                    f"{origin[path]} and {entry.key} say different things of {path}: "
                    f"{flat[path]!r} and {value!r}.",
                    "Leave one of them out.",
                )
            origin.setdefault(path, entry.key)
    config: dict[str, Any] = {}
    for path in sorted(flat, key=_place_of):
        section, _, key = path.partition(".")
        if key:
            config.setdefault(section, {})[key] = flat[path]
        else:
            config[section] = flat[path]
    return config, origin


def _place_of(path: str) -> tuple[int, int]:
    """Return where a key stands among ours: as they are declared, those of the method by name."""
    section, _, key = path.partition(".")
    declared = RunConfig.model_fields[section].annotation
    keys = list(getattr(declared, "model_fields", ("name",)))
    return list(RunConfig.model_fields).index(section), keys.index(key) if key in keys else 99


def _check(config: Mapping[str, Any], origin: Mapping[str, str], path: Path) -> None:
    """Refuse what our own rules refuse, in the words of their keys."""

    def place(key: tuple[Any, ...]) -> str:
        dotted = ".".join(str(part) for part in key[:2])
        return f"{path}: {origin[dotted]}" if dotted in origin else str(path)

    parsed = config_file.parse({"name": "run", **config}, place)
    stage, offload = parsed.cluster.zero_stage, parsed.cluster.offload
    alone = parsed.cluster.num_workers == 1 and not stage and offload == "none"
    engine = "torch" if alone else "deepspeed"
    assert parsed.task.name in plugin.tasks()
    compat.check(parsed, zero_stage=stage or 0, engine=engine)
