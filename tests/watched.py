"""A stream on which a test can wait for words."""

from __future__ import annotations

import io
import threading


class Watched(io.StringIO):
    """A stream on which a test can wait for words."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            written = super().write(text)
            self._changed.notify_all()
        return written

    def wait_for(self, words: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: words in self.getvalue(), timeout=60), words
