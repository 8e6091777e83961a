"""Stops before a training that would leave out rows, or the end of what is written. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from distft.data.finished import Refused, chunk_of
from distft.data.manifest import SplitInfo
from distft.errors import DataError
from distft.plugin import Task

UNTRAINED_SHARE = 0.01
"""Of the training rows; more may not train nothing."""


def check_trained(
    task: Task, info: SplitInfo, refused: Sequence[Refused], paths: Sequence[str]
) -> None:
    """Refuse a training set of which too many rows train nothing, or none where an answer ends.

    Args:
        task: What is learnt.
        info: Of its rows.
        refused: Rows of it that went to no shard.
        paths: The file of each chunk.

    Raises:
        DataError: It is so.
    """
    untrained = [one for one in refused if one.untrained]
    rows = info.rows + len(refused)
    if len(untrained) > UNTRAINED_SHARE * rows:
        first = untrained[0]
        raise DataError(
            f"{len(untrained)} of {rows} training rows ({len(untrained) / rows:.1%}) train "
            f"nothing, first {paths[chunk_of(first.place)]}:{first.row}: {first.reason}.",
            f"At most {UNTRAINED_SHARE:.0%} may. Raise data.cutoff_len, or mend or remove them; "
            "`distft data preview` shows them.",
        )
    if task.ends and info.rows and not info.ended:
        raise DataError(
            "No training row trains the end of an answer: a model would never learn to stop.",
            "The chat template must close an answer with a special token, and data.cutoff_len "
            "leave room for it: `distft templates` lists some that do, `distft data preview` marks "
            "what is trained.",
        )
