"""The parts of a study's report that tell how it was searched: budget, policy, space, configs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distft.report import study_document as told
from distft.report.show import (
    NOTHING,
    Cell,
    Document,
    Section,
    Table,
    cell,
    duration,
    look_up,
    number,
    percent,
    pointer,
    words,
)


def whole(value: float) -> str:
    """Return a count as text."""
    return f"{value:,.0f}"


LIMITS = {
    "trials": ("trials", whole),
    "wall_s": ("wall time", duration),
    "gpu_s": ("GPU time", duration),
    "samples": ("training samples", whole),
}


def budget(content: Document) -> Section:
    """Return what the search could spend, what it spent, and how trials were stopped."""
    study = content["study"]
    rows = [
        [words(name), cell(content, f"/study/limits/{key}", show),
         cell(content, f"/study/spent/{key}", show), _used(study, key)]
        for key, (name, show) in LIMITS.items()
        if key in study["limits"] or study["spent"].get(key)
    ]  # fmt: skip
    note = f"What ended the search: {study['ended_by']}." if study["ended_by"] else ""
    if study["ended_by"] in LIMITS:
        note = f"The search ended when its limit of {LIMITS[study['ended_by']][0]} was reached."
    counts = [
        [words(told.STATES.get(state, state)), cell(content, pointer("study", "counts", state))]
        for state in study["counts"]
    ]
    side = [
        [words(name), cell(content, f"/study/{key}", how)]
        for name, key, how in (
            ("samples of a trial in the search", "samples_per_trial", number),
            ("samples of the winner and the confirmations", "full_samples", number),
            ("trials side by side", "max_concurrent", str),
            ("workers of a trial", "workers_per_trial", str),
            ("threads of a worker", "threads_per_worker", str),
        )
    ]
    tables = [
        Table("Budget of the search", ["what", "limit", "spent", "used"], rows, note, kind="wide"),
        Table("Trials of the search by state", ["state", "trials"], counts),
        Table("How trials ran", ["what", "number"], side),
        *_rungs(content),
    ]
    return Section("budget", "Budget and policy", [table for table in tables if table.rows])


def _used(study: Mapping[str, Any], key: str) -> Cell:
    limit, spent = study["limits"].get(key), study["spent"].get(key)
    if not limit or spent is None:
        return Cell(NOTHING)
    return Cell(percent(spent / limit), spent / limit)


def _rungs(content: Document) -> Iterator[Table]:
    study = content["study"]
    shares = study["policy"].get("rungs") or []
    rows = []
    for rung, share in enumerate(shares):
        seen = [
            decision
            for _, trial in told.of_study(content, "search")
            for decision in trial["rungs"]
            if decision["rung"] == rung
        ]
        kept = sum(bool(decision["kept"]) for decision in seen)
        samples = share * study["samples_per_trial"]
        rows.append(
            [
                Cell(str(rung + 1), rung + 1),
                cell(content, f"/study/policy/rungs/{rung}", percent),
                Cell(number(round(samples)), samples),
                cell(content, f"/study/policy/keep/{rung}", percent),
                Cell(str(len(seen)), len(seen)),
                Cell(str(kept), kept),
                Cell(str(len(seen) - kept), len(seen) - kept),
            ]
        )
    if rows:
        smooth = study["policy"].get("smooth")
        note = (
            f"Compared is the mean over the last {percent(smooth)} of the budget." if smooth else ""
        )
        yield Table(
            f"Rungs: where trials were compared ({study['policy']['name'].replace('_', ' ')})",
            ["rung", "share of the budget", "samples", "may go on", "came", "went on", "stopped"],
            rows,
            note=note,
            kind="wide",
        )


def space(content: Document) -> Section | None:
    """Return the ranges of each method, and what of the values explains the result."""
    study = content["study"]
    rows = [
        [words(method), words(path), words(_values(values))]
        for method, paths in study["space"].items()
        for path, values in (paths.items() or [("", "nothing to choose")])
    ]
    tables = [Table("Space of each method", ["method", "key", "values"], rows, kind="board")]
    importances = [
        [
            words("all methods" if scope == "all" else scope),
            words(path),
            cell(content, pointer("study", "importances", scope, path), percent),
        ]
        for scope, shares in study["importances"].items()
        for path in sorted(shares, key=lambda key: -(shares[key] or 0))
    ]
    caption = "Share of the variation each parameter explains"
    tables.append(Table(caption, ["within", "parameter", "share"], importances))
    tables = [table for table in tables if table.rows]
    return Section("space", "Space searched", tables) if tables else None


def _values(values: Any) -> str:
    if isinstance(values, Mapping) and {"low", "high"} <= set(values):
        scale = ", on a log scale" if values.get("log") else ""
        return f"{told.setting(values['low'])} to {told.setting(values['high'])}{scale}"
    if isinstance(values, list):
        return ", ".join(map(told.setting, values))
    return str(values)


def configs(content: Document) -> Section:
    """Return what the trials' effective configs differ in, the winner's and the study's."""
    tables = list(_differing(content))
    chosen = told.numbered(content, content["study"]["recommended"])
    if content["run"]:
        tables.append(_every(content, "/run/config", "Effective config of the winner"))
    elif chosen and chosen[1]["run"]:
        caption = f"Effective config of trial {chosen[1]['number']}, recommended"
        tables.append(_every(content, f"/trials/{chosen[0]}/run/config", caption))
    tables.append(_every(content, "/study/config", "Config of the study"))
    return Section("configs", "Effective configs", tables)


def _differing(content: Document) -> Iterator[Table]:
    trials = [(i, trial) for i, trial in enumerate(content["trials"]) if trial["run"]]
    flat = [dict(_flat(trial["run"]["config"])) for _, trial in trials]
    every = dict.fromkeys(key for one in flat for key in one)
    apart = ("name", "output_dir")
    keys = [
        key for key in every if len({one.get(key, "") for one in flat}) > 1 and key not in apart
    ]
    if not keys:
        return
    rows = [
        [
            words(f"{trial['number']}" if trial["study"] == "search" else _confirmation(trial)),
            *(
                _shown(content, pointer("trials", i, "run", "config", *key.split(".")))
                for key in keys
            ),
            words(trial["config_hash"]),
        ]
        for i, trial in trials
    ]
    caption = f"What the effective configs of {len(trials)} trials differ in"
    yield Table(caption, ["trial", *keys, "config hash"], rows, kind="long")


def _confirmation(trial: told.Trial) -> str:
    return f"confirmation {trial['number']}"


def _every(content: Document, root: str, caption: str) -> Table:
    keys = dict(_flat(look_up(content, root) or {}))
    rows = [[words(key), _shown(content, root + pointer(*key.split(".")))] for key in keys]
    return Table(f"{caption}, all {len(rows)} keys", ["key", "value"], rows, kind="long")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(item, sort_keys=True)


def _shown(content: Document, path: str) -> Cell:
    value = look_up(content, path)
    if isinstance(value, bool | list | dict):
        return words(json.dumps(value, ensure_ascii=False))
    return cell(content, path, how=str)


def provenance(content: Document) -> Section:
    """Return what is needed to know that two studies are the same."""
    study = content["study"]
    identity = [
        [words("config hash"), words(study["config_hash"])],
        [words("objective"), words(", ".join(study["objective"]))],
        [words("sampler"), words((study["config"].get("tune") or {}).get("sampler"))],
        [words("started (UTC)"), words(study["started"])],
    ]
    tables = [Table("Identity", ["what", "value"], identity)]
    versions = [[words(name), words(version)] for name, version in study["versions"].items()]
    if versions:
        tables.append(Table("Versions", ["what", "version"], versions))
    return Section("provenance", "Versions and hashes", tables)


def commands(content: Document, study_dir: Path) -> list[tuple[str, str]]:
    """Return (what it does, the command) for the steps after a study.

    Args:
        content: The report's document.
        study_dir: The study directory, as the user named it.

    Returns:
        For an unfinished study only how to go on and how to look in.
    """
    study = content["study"]
    file = study_dir / "config.yaml"
    config = shlex.quote(str(file)) if file.is_file() else "CONFIG.yaml"
    shown = [("Look at every trial in a browser", _dashboard(study, study_dir))]
    if study["status"] != "completed":
        return [("Go on where it stopped", f"distft tune {config}"), *shown]
    if study["winner"] and content["run"]:
        again = shlex.quote(f"{study['name'][:57]}-again")
        winner = shlex.quote(str(study_dir / study["winner"]))
        best = shlex.quote(str(study_dir / "best.yaml"))
        exported = shlex.quote(f"exported/{study['name']}")
        shown = [
            ("Predict with the winner, one JSON object per line",
             f"distft predict {winner} IN.jsonl OUT.jsonl"),
            ("Export the winner as a plain Hugging Face folder",
             f"distft export {winner} {exported} --merge"),
            ("Train the winner again", f"distft train {best} name={again}"),
            *shown,
        ]  # fmt: skip
    more = int(2 * study["limits"].get("trials", study["spent"].get("trials", 1)))
    return [*shown, ("Search on with more trials", f"distft tune {config} tune.num_trials={more}")]


def _dashboard(study: Mapping[str, Any], study_dir: Path) -> str:
    storage = (study["config"].get("tune") or {}).get("storage")
    return f"optuna-dashboard {shlex.quote(str(storage or study_dir / 'study.journal'))}"
