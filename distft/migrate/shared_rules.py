"""Rules that the programs share: models, what a method reads, workers, rows that are held back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from distft import plugin
from distft.migrate.rules import OFF, Outcome, Rule, Theirs, decided, mapped, missing, wrong

LORA = ("lora", "qlora")
_STORED = re.compile(r"(?:^|[-_/])(awq|gptq|aqlm|bnb-4bit|fp8)(?=$|[-_])", re.IGNORECASE)


def of(method: Callable[[Theirs], str], methods: tuple[str, ...], key: str) -> Rule:
    """Return the rule of a key that only some methods read.

    Args:
        method: Their config -> our method.
        methods: Those that read it.
        key: Of our method.

    Returns:
        The rule.
    """

    def rule(value: Any, theirs: Theirs) -> Outcome:
        name = method(theirs)
        if name not in methods:
            return missing(f"method {name} does not read it")
        if key not in plugin.methods()[name].config.model_fields:
            return mapped(OFF) if not value else missing(f"method {name} has no {key}")
        return Outcome("mapped", "", {f"method.{key}": value})

    return rule


def model(value: Any, theirs: Theirs) -> Outcome:
    """Return the model, if its weights can be trained."""
    stored = _STORED.search(str(value))
    if stored:
        return wrong(
            f"by its name its weights are stored as {stored[1].upper()}, which cannot be trained "
            "here; name the model they were made from, and quantize it in 4 bits"
        )
    return mapped(model__id=value)


def unset(path: str, value: Any, unless: tuple[str, ...] = ()) -> Rule:
    """Return the rule of a default of theirs that is not ours.

    Args:
        path: Our key.
        value: What they take.
        unless: Keys that say the same in another way.

    Returns:
        The rule.
    """

    def rule(_: Any, theirs: Theirs) -> Outcome:
        if any(theirs.get(key) is not None for key in unless):
            return mapped()
        return Outcome("decided", "their default", {path: value})

    return rule


def workers(value: Any, theirs: Theirs) -> Outcome:
    """Return how many workers there are where the config does not say."""
    return decided(
        "their launcher says how many; a step is micro-batch x accumulation x this",
        cluster__num_workers=1,
    )


def resources(value: Any, theirs: Theirs) -> Outcome:
    """Return what a worker has."""
    if not isinstance(value, Mapping) or set(value) - {"CPU", "GPU"}:
        return missing("workers ask for CPUs and graphics cards only")
    ours = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}
    return Outcome("mapped", "", {ours[kind]: count for kind, count in value.items()})


def nothing_held_back(theirs: Theirs, eval_files: str) -> Outcome:
    """Return what is held back where they hold back nothing.

    Args:
        theirs: Their config.
        eval_files: Their key that names files of eval rows.

    Returns:
        Shares of the training rows.
    """
    if any(key.startswith(eval_files) for key in theirs.keys if theirs.get(key) is not None):
        return decided("test rows are held back, seen once at the end", data__test=0.1)
    return decided(
        "they train on every row; distft chooses by eval rows and reports on test rows",
        data__eval=0.1,
        data__test=0.1,
    )


def held_back(value: Any, theirs: Theirs) -> Outcome:
    """Return the share of eval rows, of a share or a number above 0."""
    if value >= 1:
        return missing("there a number of rows; data.eval is a share (0.1 unless set) or files")
    return decided("test rows are held back besides", data__eval=float(value), data__test=0.1)
