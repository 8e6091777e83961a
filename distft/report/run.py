"""The report of one run: report.html, report.md and report.json in its directory."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distft import records
from distft.report import document, figures, results, settings
from distft.report.show import Document, Section


def build(run_dir: Path) -> dict[str, str]:
    """Write the report of a run, finished or not.

    Args:
        run_dir: A run directory with a run.json.

    Returns:
        `html`, `md` and `json`: the paths written. Each file is replaced whole or not at all.

    Raises:
        ConfigError: The directory holds no run.json, or a file in it cannot be read.
    """
    run_dir = Path(run_dir)
    content = document.read(run_dir)
    page = _page(content, run_dir)
    texts = {"html": _html(page), "md": _markdown(page)}
    paths = {kind: run_dir / f"report.{kind}" for kind in ("html", "md", "json")}
    for kind, text in texts.items():
        records.write_text(paths[kind], text)
    records.write_json(paths["json"], content)
    return {kind: str(path) for kind, path in paths.items()}


def _page(content: Document, run_dir: Path) -> dict[str, Any]:
    run = content["run"]
    sections: list[Section | None] = [
        results.comparison(content),
        results.classes(content),
        results.data(content),
        settings.planned(content),
        settings.config(content),
        settings.provenance(content),
    ]
    described = [
        run["model"]["id"],
        *(_variant(run["config"].get(key)) for key in ("task", "method")),
    ]
    return {
        "title": run["name"],
        "status": run["status"],
        "described": [word for word in described if word],
        "started": run["started"],
        "verdict": content["verdict"]["sentence"],
        "error": _error(run["error"]),
        "strip": results.strip(content),
        "figures": figures.curves(content),
        "sections": [
            section for section in sections if section and (section.tables or section.notes)
        ],
        "commands": settings.commands(content, run_dir),
    }


def _error(error: dict[str, Any] | None) -> dict[str, str]:
    if not error:
        return {}
    found = {key: str(error.get(key) or "") for key in ("message", "hint", "traceback")}
    return {"title": str(error.get("error") or error.get("type") or "Error"), **found}


def _variant(value: Any) -> str:
    return str(value.get("name") or "") if isinstance(value, dict) else str(value or "")


def _html(page: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("distft.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = _source(environment, "page.css")
    # Only scripts with these hashes run, and nothing is loaded: neither by the page nor by text
    # in it that slipped past the escaping.
    plotly, own = get_plotlyjs(), _source(environment, "figures.js")
    scripts = " ".join(f"'sha256-{_sha256(text)}'" for text in (plotly, own))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {scripts}"
    return environment.get_template("run.html.j2").render(
        page,
        figures_json=[{"id": figure.id, "spec": figure.spec} for figure in page["figures"]],
        # These three are files of packages, not text of the run.
        style=Markup(style),
        plotly=Markup(plotly),
        own_script=Markup(own),
        policy=policy,
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _markdown(page: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("distft.report", "templates"),
        autoescape=False,
        finalize=_escape_markdown,  # which escapes in the way of Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run.md.j2").render(page)


def _escape_markdown(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", text)
