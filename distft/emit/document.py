"""Plain data to YAML documents with a header of comments; sizes as other programs write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as such."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice: not every reader knows anchors."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def documents(header: str, parts: Sequence[Mapping[str, Any]]) -> str:
    """Return YAML.

    Args:
        header: Lines for the reader, without `#`.
        parts: The documents.

    Returns:
        Text that ends with a line break.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.strip().splitlines())
    bodies = [yaml.dump(part, Dumper=_Dumper, sort_keys=False, width=100) for part in parts]
    return comment + "---\n".join(bodies)


def mebibytes(count_bytes: int) -> int:
    """Return whole mebibytes, at least 1."""
    return max(1, count_bytes >> 20)
