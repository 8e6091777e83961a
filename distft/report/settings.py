"""The parts of a report that tell how it was done: plan, config, versions, commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distft.report.show import (
    NOTHING,
    Cell,
    Document,
    Section,
    Table,
    cell,
    duration,
    look_up,
    percent,
    pointer,
    size,
    words,
)


def planned(document: Document) -> Section:
    """Return what was planned beside what was measured, and the memory of each ZeRO stage."""
    last = max(
        range(len(document["metrics"])),
        key=lambda i: document["metrics"][i].get("step") or 0,
        default=-1,
    )
    model = document["run"]["model"]
    share = model["trainable_params"] / max(1, model["params"])
    rows = [
        [words("optimizer steps"), cell(document, "/plan/total_steps"),
         cell(document, f"/metrics/{last}/step")],
        [words("parameters"), cell(document, "/plan/params"), cell(document, "/run/model/params")],
        [words("trained parameters"), cell(document, "/plan/trainable_params"),
         cell(document, "/run/model/trainable_params")],
        [words("trained share"), _planned_share(document), Cell(percent(share), share)],
        [words("workers"), cell(document, "/plan/world_size"), cell(document, "/run/world_size")],
        [words("ZeRO stage"), cell(document, "/plan/zero_stage"),
         cell(document, "/run/zero_stage")],
        [words("memory of a worker"), cell(document, "/run/peak_memory_bytes/planned", size),
         cell(document, "/run/peak_memory_bytes/measured", size)],
        [words("tokens/s, all workers"), Cell(NOTHING), cell(document, "/run/tokens_per_s")],
        [words("padding"), Cell(NOTHING), cell(document, "/run/padding", percent)],
        [words("time"), Cell(NOTHING), cell(document, "/run/duration_s", duration)],
    ]  # fmt: skip
    note = (
        "Planned memory counts weights, gradients and optimizer states; measured is the peak of "
        "the largest worker, with activations and libraries."
    )
    tables = [Table("Planned and measured", ["what", "planned", "measured"], rows, note, "wide")]
    tables.extend(_memory(document))
    notes = [str(note) for note in document["plan"].get("notes") or ()]
    return Section("planned", "Planned against measured", tables, notes=notes)


def _planned_share(document: Document) -> Cell:
    params, trained = (document["plan"].get(key) for key in ("params", "trainable_params"))
    return Cell(percent(trained / params), trained / params) if params and trained else Cell("-")


def _memory(document: Document) -> Iterator[Table]:
    memory = document["plan"].get("memory") or {}
    parts = {
        "weights_bytes": "weights",
        "gradients_bytes": "gradients",
        "optimizer_bytes": "optimizer states",
        "total_bytes": "together",
        "available_bytes": "available",
    }
    if memory.get("activations_bytes"):
        parts |= {"activations_bytes": "activations", "buffers_bytes": "buffers"}
        parts |= {"step_bytes": "optimizer step", "peak_bytes": "at the peak"}
    rows = [
        [words(name), cell(document, f"/plan/memory/{key}", size)]
        for key, name in parts.items()
        if key in memory
    ]
    if rows:
        yield Table("Planned memory of one worker", ["what", "size"], rows)
    stages = memory.get("by_stage") or {}
    if stages:
        chosen = str(document["run"]["zero_stage"])
        rows = [
            [
                words(f"ZeRO {stage}" + (" (this run)" if stage == chosen else "")),
                cell(document, pointer("plan", "memory", "by_stage", stage), size),
            ]
            for stage in stages
        ]
        yield Table("Model states of one worker by ZeRO stage", ["stage", "size"], rows)


def config(document: Document) -> Section:
    """Return the effective config: first what was derived and why, then every key."""
    reasons = document["plan"].get("reasons") or {}
    keys = dict(_flat(document["run"]["config"]))
    derived = [
        [words(key), _value(document, key, keys), words(reason)] for key, reason in reasons.items()
    ]
    every = [[words(key), _value(document, key, keys)] for key in keys]
    tables = []
    if derived:
        tables.append(
            Table("Derived values and why", ["key", "value", "why"], derived, kind="wide")
        )
    tables.append(Table(f"All {len(every)} keys", ["key", "value"], every, kind="long"))
    return Section("config", "Effective config", tables)


def _flat(value: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        path = (*prefix, str(key))
        if isinstance(item, Mapping) and item:
            yield from _flat(item, path)
        else:
            yield ".".join(path), pointer("run", "config", *path)


def _value(document: Document, key: str, keys: Mapping[str, str]) -> Cell:
    value = look_up(document, keys.get(key, "")) if key in keys else None
    path = keys.get(key, "")
    if value is None:
        # A config as the user wrote it holds nothing for a derived key; the plan does.
        path = pointer("plan", key.rsplit(".", maxsplit=1)[-1])
        value = look_up(document, path)
    if isinstance(value, bool | list | dict):
        return words(json.dumps(value, ensure_ascii=False))
    return cell(document, path, how=str)


def provenance(document: Document) -> Section:
    """Return what is needed to know that two runs are the same: hashes, seeds, versions."""
    run = document["run"]
    identity = [
        [words("config hash"), words(run["config_hash"])],
        [words("data"), words(run["data"]["manifest"])],
        [words("model"), words(run["model"]["id"])],
        [words("started (UTC)"), words(run["started"])],
    ]
    tables = [Table("Identity", ["what", "value"], identity)]
    for caption, key in (("Seeds", "seeds"), ("Versions", "versions")):
        rows = [[words(name), cell(document, pointer("run", key, name), str)] for name in run[key]]
        if rows:
            tables.append(Table(caption, ["what", "value"], rows))
    return Section("provenance", "Versions, seeds and hashes", tables)


def commands(document: Document, run_dir: Path) -> list[tuple[str, str]]:
    """Return (what it does, the command) for the steps after a run.

    Args:
        document: The report's document.
        run_dir: The run directory, as the user named it.

    Returns:
        For an unfinished run only the command that goes on with it.
    """
    run, folder = shlex.quote(str(run_dir)), run_dir
    config_file = shlex.quote(str(folder / "config.yaml"))
    if document["run"]["status"] != "completed":
        return [("Go on where it stopped", f"distft train {config_file}")]
    again = f"{document['run']['name'][:57]}-again"
    exported = shlex.quote(f"exported/{document['run']['name']}")
    return [
        ("Evaluate it, also on other rows", f"distft evaluate {run}"),
        ("Predict, one JSON object per line", f"distft predict {run} IN.jsonl OUT.jsonl"),
        ("Export a plain Hugging Face folder", f"distft export {run} {exported} --merge"),
        ("Train it again under another name", f"distft train {config_file} name={again}"),
    ]
