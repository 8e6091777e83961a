"""The starter config of `distft init`: runnable as it is, every other key beside its default.

All of it derives from the config's own fields and docs, so it cannot fall behind them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distft import plugin
from distft.config import DEFAULT_METHOD, RunConfig
from distft.errors import ConfigError, nearest

_ENCODER, _CHAT = "asset:minilm-l6", "asset:smollm2-135m-instruct"
MODELS: Mapping[str, str] = {
    "AutoModelForSequenceClassification": _ENCODER,
    "AutoModelForTokenClassification": _ENCODER,
    "AutoModelForCausalLM": _CHAT,
    # No package holds a model of these kinds: they come from the hub.
    "AutoModelForMaskedLM": "distilbert/distilroberta-base",
    "AutoModelForSeq2SeqLM": "google-t5/t5-small",
}
"""Auto class of a task -> a model that has what it needs."""

EXAMPLES: Mapping[plugin.RowKind, dict[str, Any]] = {
    "labelled_text": {"train": "asset:vader-amazon", "cutoff_len": 96},
    "multi_labelled_text": {"train": "data/train.jsonl", "cutoff_len": 128},
    "rated_text": {"train": "asset:vader-tweets", "cutoff_len": 64},
    "tagged_words": {"train": "asset:wnut-ner", "cutoff_len": 96},
    "plain_text": {"train": "asset:vader-movie-text", "cutoff_len": 128},
    "text_to_text": {"train": "data/train.jsonl", "cutoff_len": 128},
    "conversation": {"train": "asset:chatterbot-english", "cutoff_len": 128},
}
"""Kind of rows -> data settings of packaged data, or, where no package holds such rows, of a file
that the user puts there."""

SECTIONS = ("data", "train", "cluster", "tune")


def starter(task_name: str) -> str:
    """Return a commented config, of a packaged model and packaged data where there are any.

    Args:
        task_name: One of `distft tasks`.

    Returns:
        YAML that `distft train` accepts.

    Raises:
        ConfigError: No such task.
    """
    known = plugin.tasks()
    if task_name not in known:
        raise ConfigError(
            f"unknown task {task_name!r}{nearest(task_name, known)}; allowed: {', '.join(known)}."
        )
    task = known[task_name]
    model, data = MODELS[task.auto_class], EXAMPLES[task.rows[0]]
    fields = RunConfig.model_fields
    chosen: dict[str, dict[str, Any]] = {
        "data": data,
        "train": {"max_steps": 100, "global_batch_size": 16},
        "cluster": {"num_workers": 1},
        "tune": {"num_trials": 8},
    }
    lines = [
        f"# Task {task.name}: {task.summary}.",
        "# `distft plan FILE` shows what it would do, `distft train FILE` does it,",
        "# `distft tune FILE` searches method, rank and learning rate first.",
        "# A key after `#` shows its default; null means that `distft plan` derives it.",
        "",
        *_doc(fields["model"], ""),
        f"model: {model}",
        *_doc(fields["task"], ""),
        f"task: {task.name}",
        *_doc(fields["method"], ""),
        f"method: {DEFAULT_METHOD}",
    ]
    for section in SECTIONS:
        lines += ["", *_doc(fields[section], ""), f"{section}:"]
        lines += _section(_model_of(fields[section]), chosen[section])
    lines += ["", *_doc(fields["name"], ""), "# name: my-run"]
    for name in ("output_dir", "report_to"):
        lines += [*_doc(fields[name], ""), f"# {name}: {_plain(fields[name])}"]
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel], chosen: Mapping[str, Any]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield from _doc(field, "  ")
        if name in chosen:
            yield f"  {name}: {_yaml(chosen[name])}"
        else:
            yield f"  # {name}: {_plain(field)}"


def _model_of(field: FieldInfo) -> type[BaseModel]:
    model = field.annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


def _doc(field: FieldInfo, indent: str) -> list[str]:
    text = " ".join((field.description or "").split())
    prefix = f"{indent}# "
    return textwrap.wrap(text, width=100, initial_indent=prefix, subsequent_indent=prefix)


def _plain(field: FieldInfo) -> str:
    return _yaml(field.get_default(call_default_factory=True, validated_data={}))


def _yaml(value: Any) -> str:
    plain = value.model_dump() if isinstance(value, BaseModel) else value
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")
