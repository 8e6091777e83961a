"""The classes a model learns: those of the training rows, in the order of their ids. Pure."""

from __future__ import annotations

import numpy as np

from distft.config_sections import DataConfig
from distft.data.assign import Survey
from distft.data.split import FATES, SPLITS, TRAIN, UNUSABLE
from distft.errors import DataError
from distft.plugin import Task


def labels_of(survey: Survey, task: Task, data: DataConfig, *, complete: bool = True) -> list[str]:
    """Return the class names in id order: whole numbers by value, others by name.

    Args:
        survey: Decided rows.
        task: The task.
        data: The data settings, for the message.
        complete: Whether every row was surveyed; if not, classes of eval and test count as seen.

    Returns:
        Classes of the training rows; empty for a task without classes.

    Raises:
        DataError: Fewer than two classes, or one in eval or test that training never sees.
    """
    if task.classes is None:
        return []
    rows, classes, names = survey.held()
    fates = survey.fates[rows]
    kept = (fates != UNUSABLE) & (fates <= len(SPLITS))
    learnt = np.zeros(len(names), bool)
    learnt[classes[fates == TRAIN if complete else kept]] = True
    seen = {name for name, known in zip(names, learnt, strict=True) if known}
    for i in np.flatnonzero(kept & ~learnt[classes])[:1]:
        path, row = survey.place(int(rows[i]))
        capped = " (data.max_samples is set)" if data.max_samples else ""
        raise DataError(
            f"{path}:{row}: label {names[classes[i]]!r} in the {FATES[fates[i]]} rows is never "
            f"seen in training{capped}; training knows {', '.join(sorted(seen)[:20])}.",
            "Add training rows of that label, mend the label, or remove the row.",
        )
    if len(seen) < 2:
        raise DataError(
            f"The training rows hold {len(seen)} class ({', '.join(seen)}); at least 2 are needed."
            if seen
            else "No training row holds a label.",
            "Check data.columns.label.",
        )
    if all(label.lstrip("-").isdecimal() for label in seen):
        return sorted(seen, key=lambda label: (int(label), label))
    return sorted(seen)
