"""A study directory -> the document its report is made of, and how its trials are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distft.records import SCHEMA_VERSION, read_record, read_study
from distft.report.document import finite
from distft.report.show import Document, duration, label, number, size

Trial = Mapping[str, Any]

LEARNING_RATE = "train.learning_rate"
METHOD = "method.name"

STATES = {"pruned": "stopped early"}
"""How a state is said where its own name is not plain."""


def read(study_dir: Path) -> Document:
    """Return everything a report tells of one study, but for its verdict.

    Args:
        study_dir: A study directory, at any moment of the study.

    Returns:
        `schema_version, study, trials` and `run`, the winner's record or None: a run's report has
        the same key, so what is told of a run can be told of the winner. Plain JSON data in which
        numbers that are not finite stand as None.

    Raises:
        ConfigError: Its files are not there or cannot be read.
    """
    study, trials = read_study(study_dir)
    winner = study_dir / study.winner if study.winner else None
    run = read_record(winner) if winner and (winner / "run.json").is_file() else None
    content: Document = finite(
        {
            "schema_version": SCHEMA_VERSION,
            "study": study.model_dump(),
            "trials": [trial.model_dump() for trial in trials],
            "run": run.model_dump() if run else None,
        }
    )
    return content


def numbered(content: Document, number: int | None) -> tuple[int, Trial] | None:
    """Return (position in the document, trial) of a search trial, or None.

    Args:
        content: The report's document.
        number: The trial's number in the search.

    Returns:
        Its position among `trials`, and the trial.
    """
    if number is None:
        return None
    return next((pair for pair in of_study(content, "search") if pair[1]["number"] == number), None)


def of_study(content: Document, study: str) -> Iterator[tuple[int, Trial]]:
    """Yield (position in the document, trial) of the trials of `search` or `confirm`."""
    for position, trial in enumerate(content["trials"]):
        if trial["study"] == study:
            yield position, trial


def lower_wins(study: Mapping[str, Any], objective: int = 0) -> bool:
    """Return whether lower values of an objective are better."""
    directions = study["greater_is_better"]
    return not (directions[objective] if objective < len(directions) else False)


def best_first(content: Document) -> list[tuple[int, Trial]]:
    """Return the search trials, the best one first.

    Args:
        content: The report's document.

    Returns:
        (position, trial): those that ran to their end by value; then the running ones and those
        stopped early, the ones that got further first, as their values are of less training; then
        the failed and the refused.
    """
    sign = 1 if lower_wins(content["study"]) else -1
    states = ("complete", "running", "pruned", "failed", "refused")

    def rank(pair: tuple[int, Trial]) -> tuple[float, ...]:
        trial = pair[1]
        value = trial["value"]
        return (
            states.index(trial["state"]),
            0 if trial["state"] == "complete" else -trial["samples"],
            value is None,
            0.0 if value is None else sign * value,
            trial["number"],
        )

    return sorted(of_study(content, "search"), key=rank)


def candidate(content: Document, trial_number: int | None) -> tuple[int, dict[str, Any]] | None:
    """Return (position, candidate) of a search trial that was confirmed, or None."""
    found = enumerate(content["study"]["candidates"])
    return next((pair for pair in found if pair[1]["trial"] == trial_number), None)


def setting(value: Any) -> str:
    """Return a value of a parameter as a user would write it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def state(trial: Trial) -> str:
    """Return the state of a trial as a reader says it."""
    return STATES.get(str(trial["state"]), str(trial["state"]))


def parameter(path: str) -> str:
    """Return the short name of a parameter: `train.learning_rate` -> `learning rate`."""
    known = {"method.r": "rank", METHOD: "method"}
    return known.get(path, path.rsplit(".", maxsplit=1)[-1].replace("_", " "))


def described(trial: Trial) -> str:
    """Return method and parameters of a trial or a candidate in a few words."""
    return named(trial["method"], trial["params"])


def named(method: str, params: Mapping[str, Any]) -> str:
    """Return a configuration in a few words, such as `lora, learning rate 0.001, rank 8`."""
    said = [f"{parameter(p)} {setting(value)}" for p, value in params.items() if p != METHOD]
    return ", ".join([method, *said])


def parameters(content: Document) -> list[str]:
    """Return the dotted paths sampled by any trial, methods left out, in order of first sight."""
    found = dict.fromkeys(path for trial in content["trials"] for path in trial["params"])
    return [path for path in found if path != METHOD]


def common(content: Document) -> list[str]:
    """Return the parameters that every trial of the search samples, in order of first sight."""
    sampled = [trial["params"] for _, trial in of_study(content, "search")]
    return [p for p in parameters(content) if all(p in params for params in sampled)]


def how(objective: str) -> Callable[[float], str]:
    """Return what makes text of an objective's value."""
    return {"peak_memory": size, "duration_s": duration}.get(objective, number)


def goal(content: Document, objective: int = 0) -> str:
    """Return the name of an objective as a reader says it."""
    names = content["study"]["objective"]
    return label(names[objective]) if objective < len(names) else "value"
