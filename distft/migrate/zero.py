"""A DeepSpeed configuration, by its file or a preset's name -> ZeRO stage and offloading."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from distft.migrate.rules import Outcome, Theirs, decided, missing, wrong

_PRESET = re.compile(r"(?:^|[_-])(?:z|zero|stage|zero[_-]?stage)[_-]?([0-3])(?=[_-]|$)")
_OFFLOADED = ("offload_optimizer", "offload_param")
_DISK = "/mnt/nvme"
"""Where their file names no folder."""
_DERIVED = "the rest of it is derived from the plan"


def rule(value: Any, theirs: Theirs) -> Outcome:
    """Return the stage and the offloading of their `deepspeed`: a section, a path or a preset.

    Args:
        value: As it stands there.
        theirs: The other keys, and where files lie.

    Returns:
        cluster.zero_stage and cluster.offload, or why there is none.
    """
    if not value:
        return missing("empty there")
    if isinstance(value, Mapping):
        return _of_settings(value, "its section")
    found = theirs.find(str(value))
    if found is not None and found.is_file():
        try:
            settings = json.loads(found.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = None
        if not isinstance(settings, Mapping):
            return wrong("the file is no JSON object")
        return _of_settings(settings, "the file")
    name = PurePosixPath(str(value)).stem.lower()
    preset = _PRESET.search(name.removeprefix("ds_"))
    if preset is None:
        return wrong("there is no such file here, and its name tells no ZeRO stage")
    offload = "cpu" if "offload" in name else None
    return _outcome(int(preset.group(1)), offload, "its name, since the file is not here")


def stage(theirs: Theirs) -> int | None:
    """Return the ZeRO stage they ask for; None where they leave it open."""
    value = theirs.get("deepspeed")
    return rule(value, theirs).sets.get("cluster.zero_stage") if value else None


def _of_settings(settings: Mapping[str, Any], source: str) -> Outcome:
    zero = settings.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {}
    number = zero.get("stage", 0)
    if not isinstance(number, int) or not 0 <= number <= 3:
        return wrong(f"stage {number!r} of zero_optimization is none of 0 to 3")
    parts = [part for key in _OFFLOADED if isinstance(part := zero.get(key), Mapping)]
    devices = {str(part.get("device", "none")) for part in parts} - {"none"}
    extra = []
    if isinstance(zero.get("offload_param"), Mapping):
        extra.append("only the optimizer states are offloaded here")
    if "nvme" in devices and number == 3:
        paths = [str(part["nvme_path"]) for part in parts if part.get("nvme_path")]
        if not paths:
            extra.append(f"it names no folder: {_DISK} is a guess")
        said = "; ".join([source, *extra])
        return _outcome(number, "nvme", said, nvme_path=paths[0] if paths else _DISK)
    return _outcome(number, "cpu" if devices and number > 0 else None, "; ".join([source, *extra]))


def _outcome(number: int, offload: str | None, source: str, **more: str) -> Outcome:
    said = f"by {source}; {_DERIVED}"
    sets = {"zero_stage": number, **({"offload": offload} if offload else {}), **more}
    return decided(said, **{f"cluster__{key}": value for key, value in sets.items()})
