"""The tables of a study's report that tell what came out: who won, and every trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
    label,
    number,
    percent,
    pointer,
    size,
    words,
)

MOST_COLUMNS = 4
"""Most parameters with a column of their own in the leaderboard."""
TONES = {"failed": "bad", "refused": "bad", "pruned": "warn", "complete": "good"}


def strip(content: Document) -> list[tuple[str, Cell]]:
    """Return the few numbers shown large, each with its name."""
    study = content["study"]
    if not content["trials"]:
        return []
    goal = told.goal(content)
    chosen = told.numbered(content, study["recommended"])
    best = told.numbered(content, study["best_trial"])
    shown: list[tuple[str, Cell]] = []
    if content["run"]:
        metric = label(content["verdict"]["metric"])
        shown = [
            (f"{metric}, tuned", cell(content, "/verdict/tuned")),
            (f"{metric}, base", cell(content, "/verdict/base")),
            ("most frequent class", cell(content, "/verdict/majority")),
        ]
    elif best:
        shown = [(f"best {goal}", _value(content, best[0]))]
    if chosen:
        position, trial = chosen
        shown += [
            ("recommended", words(trial["method"])),
            ("trained share", _share(trial)),
            ("planned memory", _planned(content, position)),
            ("saved size", _saved(content, position)),
        ]
    else:
        shown += [
            (told.STATES.get(state, state), cell(content, pointer("study", "counts", state)))
            for state in ("running", "complete", "pruned", "failed", "refused")
            if study["counts"].get(state)
        ]
    shown += [
        ("study time", cell(content, "/study/duration_s", duration)),
    ]
    return [(name, one) for name, one in shown if one.text != NOTHING]


def winners(content: Document) -> Section:
    """Return the short answer: the candidates that were confirmed, and the best of each method."""
    study = content["study"]
    notes = []
    if study["recommended"] is not None and not study["candidates"]:
        why = study["tolerance_from"] or "not asked for"
        notes.append(f"Not confirmed with further seeds: {why}.")
    tables = [*_candidates(content), *_best_per_method(content)]
    return Section("winners", "What is worth it", tables, notes=notes)


def in_short(content: Document) -> Table:
    """Return the best of each method in the columns a terminal has room for."""
    full = next(_best_per_method(content), Table("", (), ()))
    columns = [i for i, name in enumerate(full.head) if name not in ("trials", "measured")]
    return replace(
        full,
        head=[full.head[i] for i in columns],
        rows=[[row[i] for i in columns] for row in full.rows],
    )


def _candidates(content: Document) -> Iterator[Table]:
    study = content["study"]
    if not study["candidates"]:
        return
    goal = told.goal(content)
    rows = []
    for i, one in enumerate(study["candidates"]):
        path = f"/study/candidates/{i}"
        rows.append(
            [
                _trial_number(content, one["trial"], f"{path}/trial"),
                words(told.described(one)),
                cell(content, f"{path}/search_value", _how(content)),
                cell(content, f"{path}/mean", _how(content)),
                cell(content, f"{path}/spread", _how(content)),
                Cell(str(len(one["values"])), len(one["values"])),
                cell(content, f"{path}/cost/0", size),
                cell(content, f"{path}/cost/1"),
                _verdict(study, one),
            ]
        )
    head = ["trial", "configuration", f"search {goal}", f"mean {goal}", "spread", "seeds"]
    yield Table(
        f"Confirmed with further seeds at full budget, {study['full_samples']:,} samples each",
        [*head, "planned", "trained", "verdict"],
        rows,
        note=_rule(content),
        kind="board",
        marked=_position(study["candidates"], study["recommended"]),
    )
    yield from _seeds(content)


def _rule(content: Document) -> str:
    study = content["study"]
    if study["tolerance"] is None:
        return "Spread is the standard deviation over the seeds; planned is the memory of a worker."
    came = study["tolerance_from"].rstrip(".")
    return (
        f"Recommended is the cheapest one (planned memory first, then trained parameters) whose "
        f"mean is within {number(study['tolerance'])} of the best mean. "
        f"Where this tolerance comes from: {came or 'not recorded'}. "
        "Spread is the standard deviation over the seeds; planned is the memory "
        "of a worker, trained the number of parameters."
    )


def _verdict(study: dict[str, Any], one: dict[str, Any]) -> Cell:
    if one["mean"] is None and study["recommended"] is None and study["status"] == "running":
        return Cell("being confirmed")
    if one["mean"] is None:
        return Cell("no seed finished", tone="bad")
    if one["trial"] == study["recommended"]:
        return Cell("recommended", tone="good")
    if not one["within_tolerance"]:
        return Cell("not near enough")
    chosen = [each for each in study["candidates"] if each["trial"] == study["recommended"]]
    dearer = bool(chosen) and one["cost"] > chosen[0]["cost"]
    return Cell("near, but dearer" if dearer else "near, as dear, not better")


def _position(candidates: Sequence[dict[str, Any]], trial: int | None) -> int:
    return next((i for i, one in enumerate(candidates) if one["trial"] == trial), -1)


def _seeds(content: Document) -> Iterator[Table]:
    rows = [
        [
            cell(content, f"/trials/{i}/seed", str),
            words(told.described(trial)),
            _value(content, i),
            cell(content, f"/trials/{i}/samples"),
            cell(content, f"/trials/{i}/duration_s", duration),
            _state(trial),
        ]
        for i, trial in told.of_study(content, "confirm")
    ]
    if rows:
        head = ["seed", "configuration", told.goal(content), "samples", "time", "state"]
        yield Table("Each confirmation", head, rows, kind="long")


def _best_per_method(content: Document) -> Iterator[Table]:
    ranked = told.best_first(content)
    if not any(trial["value"] is not None for _, trial in ranked):
        return
    methods = [*content["study"]["space"], *(trial["method"] for _, trial in ranked)]
    rows, marked = [], -1
    for method in dict.fromkeys(methods):
        own = [(i, trial) for i, trial in ranked if trial["method"] == method]
        found = next(((i, t) for i, t in own if t["value"] is not None and _counts(t)), None)
        count = Cell(str(len(own)), len(own))
        if found is None:
            rows.append([words(method), count, *[Cell(NOTHING)] * 9])
            continue
        i, trial = found
        if trial["number"] == content["study"]["recommended"]:
            marked = len(rows)
        rows.append(
            [
                words(method),
                count,
                cell(content, f"/trials/{i}/number", str),
                words(told.described(trial).removeprefix(f"{method}, ")),
                _value(content, i),
                cell(content, f"/trials/{i}/samples"),
                *_costs(content, i, trial),
                cell(content, f"/trials/{i}/duration_s", duration),
            ]
        )
    head = ["method", "trials", "best", "with", told.goal(content), "samples"]
    head += ["trained", "planned", "measured", "saved", "time"]
    yield Table("Best of each method in the search", head, rows, kind="board", marked=marked)


def _counts(trial: told.Trial) -> bool:
    return trial["state"] not in ("failed", "refused")


def leaderboard(content: Document) -> Section | None:
    """Return every trial of the search with what it cost, the best one first."""
    ranked = told.best_first(content)
    if not ranked:
        return None
    study = content["study"]
    paths = told.parameters(content)
    # Columns of single methods, almost empty, would push the values out of sight.
    folded = len(paths) > MOST_COLUMNS
    paths = told.common(content) if folded else paths
    further = range(1, len(study["objective"]))
    confirmed = bool(study["candidates"])
    head = [
        "trial",
        "method",
        *(told.parameter(path) for path in paths),
        *(["with"] if folded else []),
        told.goal(content),
        *(told.goal(content, i) for i in further),
        *(["mean over seeds", "spread"] if confirmed else []),
        "samples",
        "trained parameters",
        "trained share",
        "planned",
        "measured",
        "saved",
        "time",
        "state",
    ]
    rows = []
    for i, trial in ranked:
        rows.append(
            [
                cell(content, f"/trials/{i}/number", str),
                words(trial["method"]),
                *(cell(content, pointer("trials", i, "params", p), told.setting) for p in paths),
                *([words(_others(trial, paths))] if folded else []),
                _value(content, i),
                *(
                    cell(content, f"/trials/{i}/values/{k}", told.how(study["objective"][k]))
                    for k in further
                ),
                *(_confirmed(content, trial["number"]) if confirmed else []),
                cell(content, f"/trials/{i}/samples"),
                cell(content, f"/trials/{i}/run/model/trainable_params"),
                *_costs(content, i, trial),
                cell(content, f"/trials/{i}/duration_s", duration),
                _state(trial, trial["number"] == study["recommended"]),
            ]
        )
    numbers = [trial["number"] for _, trial in ranked]
    chosen = study["recommended"]
    table = Table(
        f"All {len(rows)} trials of the search, best first"
        if len(rows) > 1
        else "The only trial of the search",
        head,
        rows,
        note=_how_to_read(study),
        kind="board",
        marked=numbers.index(chosen) if chosen in numbers else -1,
    )
    return Section("leaderboard", "Leaderboard", [table])


def _others(trial: told.Trial, paths: Sequence[str]) -> str:
    others = {p: value for p, value in trial["params"].items() if p not in paths}
    return told.named("", others).removeprefix(", ") or NOTHING


def _how_to_read(study: dict[str, Any]) -> str:
    return (
        f"A trial's value is its best evaluation on the eval rows within "
        f"{study['samples_per_trial']:,} samples; one stopped early had "
        "fewer and stands below those that ran to their end. "
        "Planned is the memory of one worker for weights, gradients and optimizer states, measured "
        "the peak of the largest worker, saved the size on disk."
    )


def _confirmed(content: Document, trial_number: int) -> list[Cell]:
    found = told.candidate(content, trial_number)
    if found is None:
        return [Cell(NOTHING), Cell(NOTHING)]
    path = f"/study/candidates/{found[0]}"
    return [cell(content, f"{path}/{key}", _how(content)) for key in ("mean", "spread")]


def _costs(content: Document, i: int, trial: told.Trial) -> list[Cell]:
    measured = cell(content, f"/trials/{i}/run/peak_memory_bytes/measured", size)
    return [_share(trial), _planned(content, i), measured, _saved(content, i)]


def _share(trial: told.Trial) -> Cell:
    if not trial["run"]:
        return Cell(NOTHING)
    model = trial["run"]["model"]
    share = model["trainable_params"] / max(1, model["params"])
    return Cell(percent(share), share)


def _planned(content: Document, i: int) -> Cell:
    return cell(content, f"/trials/{i}/run/peak_memory_bytes/planned", size)


def _saved(content: Document, i: int) -> Cell:
    found = cell(content, f"/trials/{i}/saved_bytes", size)
    return found if found.value else Cell(NOTHING)


def _value(content: Document, i: int) -> Cell:
    return cell(content, f"/trials/{i}/value", _how(content))


def _how(content: Document) -> Callable[[float], str]:
    return told.how((content["study"]["objective"] or [""])[0])


def _trial_number(content: Document, trial: int, path: str) -> Cell:
    found = told.numbered(content, trial)
    return cell(content, f"/trials/{found[0]}/number" if found else path, str)


def _state(trial: told.Trial, recommended: bool = False) -> Cell:
    text = told.state(trial)
    if trial["reused_from"] is not None:
        text = f"same as trial {trial['reused_from']}"
    if trial["attempts"] > 1:
        text += f", started {trial['attempts']} times"
    shown = Cell(text, tone=TONES.get(trial["state"], ""))
    return replace(shown, text=f"{text}, recommended") if recommended else shown


def troubles(content: Document) -> Section | None:
    """Return what did not go its whole way, each with its reason."""
    captions = {
        "failed": "Failed: the study went on without them",
        "refused": "Refused before launch: they break a constraint or do not fit",
        "pruned": "Stopped early",
    }
    tables = [
        table for state, caption in captions.items() for table in _reasons(content, state, caption)
    ]
    reused = [
        [
            cell(content, f"/trials/{i}/number", str),
            words(told.described(trial)),
            cell(content, f"/trials/{i}/reused_from", str),
        ]
        for i, trial in told.of_study(content, "search")
        if trial["reused_from"] is not None
    ]
    if reused:
        caption = "Not run again: the same configuration had a result"
        head = ["trial", "configuration", "result of trial"]
        tables.append(Table(caption, head, reused, kind="wide"))
    return Section("troubles", "Stopped, failed, refused, reused", tables) if tables else None


def _reasons(content: Document, state: str, caption: str) -> Iterator[Table]:
    rows = [
        [
            _named(content, i, trial),
            words(trial["reason"] or "no reason recorded"),
            words(told.described(trial)),
            cell(content, f"/trials/{i}/samples"),
        ]
        for i, trial in enumerate(content["trials"])
        if trial["state"] == state and trial["reused_from"] is None
    ]
    if rows:
        head = ["trial", "why", "configuration", "after samples"]
        kind = "long" if state == "pruned" else "wide"
        yield Table(f"{caption} ({len(rows)})", head, rows, kind=kind)


def _named(content: Document, i: int, trial: told.Trial) -> Cell:
    """Return the number of a trial; a confirmation is told by its seed."""
    if trial["study"] == "search":
        return cell(content, f"/trials/{i}/number", str)
    return cell(content, f"/trials/{i}/seed", lambda seed: f"confirmation, seed {seed}")
