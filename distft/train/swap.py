"""A folder on a node's disk for what a process offloads there, gone when the process ends.

A process that is killed cleans nothing: the next one on that disk removes what it left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "distft-offload-"
_LOCK = "lock"
"""Held as long as the folder's process lives."""


class SwapFolder:
    """A process's own folder below a root; making it removes what processes that are gone left.

    Args:
        root: On the node's own disk.

    Raises:
        OSError: It is not there, or cannot be written.
    """

    def __init__(self, root: Path) -> None:
        sweep(root)
        # Named only once the lock is held, or another process's sweep would take it for a remnant.
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=root))
        self._lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path: Path = made.rename(root / made.name.removeprefix("."))

    def close(self) -> None:
        """Remove it with all that lies in it; a second time nothing is done."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(root: Path) -> None:
    """Remove the folders of processes that are gone.

    Args:
        root: Of the folders; those that another user left stay.
    """
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # held, another's, or gone meanwhile
            lock = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
