"""What a method cannot be combined with: rules of the methods' own files, checked in a plan.

Each rule is a pair: a method, as it is configured, and one setting. `distft methods --matrix` shows
them all; a plan refuses a pair before anything is started and names the nearest setting allowed.
"""

from __future__ import annotations

from collections.abc import Mapping

from distft import plugin
from distft.config import RunConfig
from distft.errors import ConfigError, PlanError
from distft.plugin import Method, VariantConfig

STAGES = tuple(f"cluster.zero_stage={stage}" for stage in range(4))
PACKING = "data.packing=true"
CHECKPOINTING = "train.gradient_checkpointing=true"
DEEPSPEED = "engine=deepspeed"
"""More than one worker, ZeRO 1-3 or offloading; else one process trains with plain torch."""

_REMEDIES = {
    PACKING: "Set data.packing=false.",
    CHECKPOINTING: "Set train.gradient_checkpointing=false.",
    "train.bf16=true": "Set train.bf16=false.",
    "model.dtype=bfloat16": "Set model.dtype=float32, with train.bf16=true for speed.",
    "cluster.offload=cpu": "Set cluster.offload=none.",
    DEEPSPEED: "Set cluster.num_workers=1 and leave zero_stage and offload out.",
}


def settings() -> list[str]:
    """Return everything a method may refuse, as `key=value`."""
    return [*(f"task={task}" for task in plugin.tasks()), *STAGES, *_REMEDIES]


def matrix() -> dict[str, dict[str, str]]:
    """Return what every method with its default keys refuses.

    Returns:
        Method -> {setting: why}; a setting that is absent is allowed.
    """
    return {
        name: dict(_rules(method, method.config.model_validate({"name": name})))
        for name, method in plugin.methods().items()
    }


def _rules(method: Method, config: VariantConfig) -> Mapping[str, str]:
    rules = dict(method.refuses(config))
    if method.virtual_tokens(config):
        rules[PACKING] = "its vectors stand before a row, not before each sample in it"
    return rules


def table() -> str:
    """Return the matrix in Markdown: a table, and below it why."""
    found, columns = matrix(), settings()
    heads = [
        setting.removeprefix("task=").rpartition(".")[2].removesuffix("=true")
        for setting in columns
    ]
    lines = [_row(["method", *heads]), _row(["---"] * (len(heads) + 1))]
    for name, refuses in found.items():
        lines.append(_row([name, *("no" if column in refuses else "yes" for column in columns)]))
    why = [
        f"- `{name}` with `{setting}`: {reason}."
        for name, refuses in found.items()
        for setting, reason in refuses.items()
    ]
    return "\n".join([*lines, *([""] if why else []), *why])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def refused(config: RunConfig) -> Mapping[str, str]:
    """Return the settings that the configured method refuses.

    Args:
        config: With its method.

    Returns:
        Setting -> why.
    """
    return _rules(plugin.methods()[config.method.name], config.method)


def packs(config: RunConfig, reasons: dict[str, str]) -> bool:
    """Return whether samples are to share rows, as far as task and method have a say.

    Args:
        config: With its task resolved.
        reasons: Gets a reason where it is derived.

    Returns:
        `data.packing`, or what is derived.

    Raises:
        ConfigError: It is asked for and the task cannot.
    """
    task, wanted = plugin.tasks()[config.task.name], config.data.packing
    if wanted and not task.packs:
        able = [name for name, one in plugin.tasks().items() if one.packs]
        raise ConfigError(
            f"data.packing: got true, but a sample of task {task.name} needs a row of its own; "
            f"allowed: {', '.join(able)}.",
            _REMEDIES[PACKING],
        )
    if wanted is not None:
        return wanted
    if not task.packs:
        reasons["data.packing"] = f"no: a sample of task {task.name} needs a row of its own"
    elif why := refused(config).get(PACKING):
        reasons["data.packing"] = f"no: {why}"
    else:
        reasons["data.packing"] = f"yes: samples of task {task.name} may share a row"
    return reasons["data.packing"].startswith("yes")


def check(config: RunConfig, *, zero_stage: int, engine: str) -> None:
    """Refuse what does not go together.

    Args:
        config: With its task resolved.
        zero_stage: Of the plan.
        engine: Of the plan.

    Raises:
        PlanError: A rule forbids a setting; the hint names the nearest that is allowed.
    """
    rules = refused(config)
    chosen = {
        f"task={config.task.name}",
        f"cluster.zero_stage={zero_stage}",
        f"engine={engine}",
        f"model.dtype={config.model.dtype}",
        f"cluster.offload={config.cluster.offload}",
        f"train.gradient_checkpointing={str(config.train.gradient_checkpointing).lower()}",
        f"train.bf16={str(config.train.bf16).lower()}",
        f"data.packing={str(config.data.packing).lower()}",
    }
    for setting, reason in rules.items():
        if setting in chosen:
            raise PlanError(
                f"Method {config.method.name} does not go with {setting}: {reason}.",
                _remedy(setting, rules),
            )


def _remedy(setting: str, rules: Mapping[str, str]) -> str:
    if setting in _REMEDIES:
        return _REMEDIES[setting]
    if setting in STAGES:
        asked = STAGES.index(setting)
        allowed = [stage for stage in range(4) if STAGES[stage] not in rules]
        nearest = min(allowed, key=lambda stage: abs(stage - asked), default=None)
        return "" if nearest is None else f"Set cluster.zero_stage={nearest}."
    able = [name for name, refuses in matrix().items() if setting not in refuses]
    return f"Methods that do: {', '.join(able)}."
