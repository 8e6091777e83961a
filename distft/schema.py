"""The JSON schema of a config, for editors and other programs."""

from __future__ import annotations

from typing import Any

from distft import plugin
from distft.config import DEFAULT_METHOD, RunConfig, variants

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the schema of a config file: every key with its doc, every method and task."""
    schema = RunConfig.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    for section in ("method", "task"):
        known = variants(section)
        options: list[dict[str, Any]] = [{"enum": [*known, None]}]
        for name, variant in known.items():
            keys = variant.config.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(keys.pop("$defs", {}))
            keys["properties"]["name"]["const"] = name
            keys["description"] = variant.summary
            keys["title"] = f"{section} {name}"
            # A method's keys alone belong to the default method; a task always has a name.
            if (section, name) != ("method", DEFAULT_METHOD):
                keys["required"] = ["name", *keys.get("required", [])]
            options.append(keys)
        schema["properties"][section] = {
            "description": schema["properties"][section]["description"],
            "default": None,
            "oneOf": options,
        }
    schema["properties"]["report_to"]["anyOf"][0]["items"]["enum"] = list(plugin.trackers())
    schema["properties"]["model"] = {
        "description": schema["properties"]["model"]["description"],
        "oneOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/ModelConfig"}],
    }
    return {"$schema": DIALECT, **schema, "title": "distft config"}
