"""The model card of an export: what it is, from what, how good, and how to load it."""

from __future__ import annotations

import json
from importlib.resources import files

from jinja2 import Environment

from distft import plugin
from distft.records import RunRecord


def model_card(record: RunRecord, kind: str, max_logit_difference: float) -> str:
    """Return the README.md of an exported model.

    Args:
        record: Of its run.
        kind: adapter, merged or full.
        max_logit_difference: Between the written and the trained model.

    Returns:
        Markdown with the hub's YAML front matter.
    """
    text = (files("distft.report") / "templates" / "card.md.j2").read_text(encoding="utf-8")
    template = Environment(trim_blocks=True, autoescape=False).from_string(text)
    scalars = {
        split: {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        for split, metrics in record.test.items()
    }
    task = plugin.tasks()[record.config["task"]["name"]]
    return template.render(
        record=record,
        kind=kind,
        difference=f"{max_logit_difference:.2g}",
        test=scalars,
        auto_class=task.auto_class,
        new_head=task.new_head,
        config=json.dumps(record.config, indent=2, ensure_ascii=False),
    )
