"""Keeps secrets out of what is written and printed: those in addresses and in the environment."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

HIDDEN = "***"
LEAST_CHARACTERS = 6
"""A shorter value is no secret worth the name, and would be found in every other word."""
_NAMES = re.compile(r"(?:TOKEN|_KEY|APIKEY|SECRET|PASSWORD|PASSWD|_PWD)$|PASSWORD", re.IGNORECASE)
_SCHEME = r"(?<![a-zA-Z0-9+.-])([a-zA-Z][a-zA-Z0-9+.-]*://)"
# A host's port is no password: http://host:8080/a@b.
_PAIR = re.compile(_SCHEME + r"([^\s/:@'\"]*):(?!\d{1,5}/)[^\s'\"]+@")
_ALONE = re.compile(_SCHEME + r"[^\s/:@'\"]+@")
_QUERY = re.compile(
    r"([?&][\w-]*(?:key|secret|token|password|sig|signature)=)[^&\s'\"]+", re.IGNORECASE
)


def hide(text: str) -> str:
    """Return a text without secrets.

    Args:
        text: What is to be written or printed.

    Returns:
        The same, where no secret stands in it; else `***` in place of what an address holds before
        its `@`, but for a user's name, and of values of environment variables whose names end in
        TOKEN, KEY, SECRET or PASSWORD.
    """
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    if "://" not in text:
        return text
    text = _PAIR.sub(_user_only, text)
    return _QUERY.sub(rf"\1{HIDDEN}", _ALONE.sub(rf"\1{HIDDEN}@", text))


def hidden(value: Any) -> Any:
    """Return plain data with every text in it hidden.

    Args:
        value: Mappings, lists, texts and numbers.

    Returns:
        A copy.
    """
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {hidden(key): hidden(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(each) for each in value]
    return value


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Hide secrets in all that Python writes to stdout and stderr meanwhile."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Hiding(sys.stdout), Hiding(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept


class Hiding(io.TextIOBase):
    """A stream without secrets.

    Args:
        stream: Where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text with its secrets hidden; one that is cut in two calls is not found."""
        self._stream.write(hide(text))
        return len(text)

    def flush(self) -> None:
        """Write what the stream holds back."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Return whether a person watches."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's own descriptor; what is written there is not looked at."""
        return self._stream.fileno()

    def reconfigure(self, **options: Any) -> None:
        """Change how the stream encodes."""
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(**options)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # as the stream's own
        """The stream's own."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # as the stream's own
        """The stream's own."""
        return self._stream.errors


def _secrets() -> list[str]:
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= LEAST_CHARACTERS and _NAMES.search(name)
    }
    # The longest first: a secret may stand within another.
    return sorted(found, key=len, reverse=True)


def _user_only(match: re.Match[str]) -> str:
    # An address of S3 holds two keys; the user's name in that of a database is worth seeing.
    return f"{match[1]}{HIDDEN if match[1] == 's3://' else match[2]}:{HIDDEN}@"
