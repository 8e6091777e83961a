"""Every error a user can meet: what was got, what is allowed, what to do, and an exit code.

Raise the class of the layer that noticed. Errors cross process boundaries (Ray workers,
Data tasks), so all of them pickle with their hint.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistftError(Exception):
    """Base of all distft errors.

    Args:
        message: What was got and what is allowed.
        hint: One sentence saying what to do about it; may be empty.
    """

    exit_code = 4
    """What the command line returns: 2 wrong input, 3 refused, 4 the run failed, 75 lost."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[type[DistftError], tuple[str, str]]:
        return type(self), (str(self), self.hint)

    def as_dict(self) -> dict[str, str | int]:
        """Return the error as the JSON document `--json` prints."""
        return {
            "error": type(self).__name__,
            "message": str(self),
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class ConfigError(DistftError):
    """The configuration, a path or a name in it is wrong."""

    exit_code = 2


class DataError(DistftError):
    """A data file or a row in it is wrong."""

    exit_code = 2


class PlanError(DistftError):
    """Refused before anything is launched: does not fit, does not combine, exists already."""

    exit_code = 3


class ClusterError(DistftError):
    """The Ray cluster cannot run what the plan asks for."""

    exit_code = 3


class TrainError(DistftError):
    """A run failed while training."""

    exit_code = 4


class SearchError(DistftError):
    """A search cannot go on, or found nothing."""

    exit_code = 4


class ExportError(DistftError):
    """A written model is not the model that was trained."""

    exit_code = 4


class LostError(DistftError):
    """The cluster does not answer, or lost what ran on it: the same command may succeed."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: schedulers know it as `try again`."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known word nearest to this one, or nothing.

    Args:
        word: What was written.
        known: What is allowed.

    Returns:
        Text to append to a message; empty when nothing is near.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
