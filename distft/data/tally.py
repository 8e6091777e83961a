"""What cleaning did over all rows: counts of each step, and its first rows as samples. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from distft.data.clean import STEPS, Change
from distft.data.manifest import CleaningSample, CleaningStep

SAMPLES = 20
"""Of each step."""


def packed(changes: Iterable[Change], sampled: Counter[str]) -> str | None:
    """Return what cleaning did to a row as text that travels between processes.

    Args:
        changes: What it did.
        sampled: Rows of this chunk so far by step; counted up. The first 20 bring excerpts: the
            first 20 of all rows are among them, however the files are cut into chunks.

    Returns:
        JSON; None where nothing was done.
    """
    items: list[tuple[str, str, str | None, bool]] = []
    for change in changes:
        sampled[change.step] += 1
        shown = sampled[change.step] <= SAMPLES
        after = change.after if shown or change.after is None else ""
        items.append((change.step, change.before if shown else "", after, shown))
    return json.dumps(items) if items else None


class Tally:
    """Counts and samples by step, row after row in file order."""

    def __init__(self) -> None:
        self._steps = {name: CleaningStep() for name in STEPS}

    def steps(self) -> dict[str, CleaningStep]:
        """Return what each step did that did anything, in the order of the steps."""
        return {name: one for name, one in self._steps.items() if one.changed or one.dropped}

    def add(self, path: str, row: int, changes: str) -> None:
        """Count what was done to a row.

        Args:
            path: Its file.
            row: Its number in the file.
            changes: What `packed` returned.
        """
        for name, before, after, shown in json.loads(changes):
            sample = CleaningSample(file=path, row=row, before=before, after=after)
            self._count(name, sample if shown else None, dropped=after is None)

    def extend(self, path: str, table: pa.Table) -> None:
        """Count what was done to the rows of a table.

        Args:
            path: Their file.
            table: Columns `row` and `changes`, as `distft.data.survey.surveyed` has them.
        """
        cleaned = table.select(["row", "changes"]).filter(pc.is_valid(table["changes"]))
        for item in cleaned.to_pylist():
            self.add(path, item["row"], item["changes"])

    def near(self, place: tuple[str, int], other: tuple[str, int]) -> None:
        """Count a row that was left out because it resembles another.

        Args:
            place: Its file and its number there.
            other: The same of the row that stays.
        """
        where = f"{other[0]}:{other[1]}"
        sample = CleaningSample(file=place[0], row=place[1], resembles=where)
        self._count("near_duplicates", sample, dropped=True)

    def _count(self, name: str, sample: CleaningSample | None, *, dropped: bool) -> None:
        step = self._steps[name]
        step.dropped += dropped
        step.changed += not dropped
        if sample is not None and len(step.samples) < SAMPLES:
            step.samples.append(sample)


def summary(steps: Mapping[str, CleaningStep]) -> str:
    """Return what cleaning did, a line for each step: `mask changed 3 rows, first at a.jsonl:7`.

    Args:
        steps: Of a manifest.

    Returns:
        Empty where it did nothing.
    """
    lines: list[str] = []
    for name, step in steps.items():
        did, count = ("dropped", step.dropped) if step.dropped else ("changed", step.changed)
        first = step.samples[0]
        rows = "1 row" if count == 1 else f"{count} rows"
        lines.append(f"{name} {did} {rows}, first at {first.file}:{first.row}")
    return "\n".join(lines)
