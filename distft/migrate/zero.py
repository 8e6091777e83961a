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
    return _outcome(int(preset.group(1)), "offload" in name, "its name, since the file is not here")


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
    devices = {
        str(part.get("device", "none"))
        for key in _OFFLOADED
        if isinstance(part := zero.get(key), Mapping)
    } - {"none"}
    extra = []
    if "nvme" in devices:
        extra.append("there to NVMe")
    if isinstance(zero.get("offload_param"), Mapping):
        extra.append("only the optimizer states are offloaded here")
    return _outcome(number, bool(devices) and number > 0, "; ".join([source, *extra]))


def _outcome(number: int, offload: bool, source: str) -> Outcome:
    said = f"by {source}; {_DERIVED}"
    if offload:
        return decided(said, cluster__zero_stage=number, cluster__offload="cpu")
    return decided(said, cluster__zero_stage=number)
