"""A page as data -> report.html, report.md and report.json; the same for runs and studies."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distft import records
from distft.report.figures import Figure
from distft.report.show import Cell, Document, Section


@dataclass(frozen=True)
class Page:
    """What a reader gets, from top to bottom."""

    title: str
    status: str
    described: Sequence[str]
    """Words above the title."""
    verdict: str
    """In a sentence or two, set large."""
    started: str
    """UTC, ISO 8601."""
    sources: str
    """The files it was made from, in words."""
    further: str = ""
    """What else is to be known at once, below the verdict."""
    error: dict[str, str] = field(default_factory=dict)
    """`title, message, hint, traceback`; empty where nothing failed."""
    link: tuple[str, str] | None = None
    """Words and a relative address of a further report."""
    strip: Sequence[tuple[str, Cell]] = ()
    first: Sequence[Section] = ()
    """Sections above the figures."""
    figures_title: str = "Curves"
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()
    commands: Sequence[tuple[str, str]] = ()
    """What it does, and the command."""


def write(folder: Path, page: Page, content: Document) -> dict[str, str]:
    """Write the three files of a report.

    Args:
        folder: Where they go.
        page: What HTML and Markdown show.
        content: What the JSON holds; numbers of the page point into it.

    Returns:
        `html`, `md` and `json`: the paths written. Each file is replaced whole or not at all.
    """
    texts = {"html": _html(page), "md": _markdown(page)}
    paths = {kind: folder / f"report.{kind}" for kind in ("html", "md", "json")}
    for kind, text in texts.items():
        records.write_text(paths[kind], text)
    records.write_json(paths["json"], content)
    return {kind: str(path) for kind, path in paths.items()}


def told(error: dict[str, Any] | None) -> dict[str, str]:
    """Return the error of a record as a page shows it.

    Args:
        error: As in the record.

    Returns:
        `title, message, hint, traceback`; empty where there is no error.
    """
    if not error:
        return {}
    found = {key: str(error.get(key) or "") for key in ("message", "hint", "traceback")}
    return {"title": str(error.get("error") or error.get("type") or "Error"), **found}


def variant(value: Any, key: str = "name") -> str:
    """Return the name of a task, method or model of a config, written short or long."""
    return str(value.get(key) or "") if isinstance(value, dict) else str(value or "")


def _fields(page: Page) -> dict[str, Any]:
    return {name: getattr(page, name) for name in page.__dataclass_fields__}


def _html(page: Page) -> str:
    from plotly.offline import get_plotlyjs

    return html(
        "report.html.j2",
        _fields(page),
        figures_json=[{"id": figure.id, "spec": figure.spec} for figure in page.figures],
        plotly=get_plotlyjs(),
    )


def html(
    template: str,
    values: Mapping[str, Any],
    *,
    figures_json: Sequence[Mapping[str, Any]] = (),
    plotly: str = "",
) -> str:
    """Return a page that loads nothing, with every text in it escaped.

    Args:
        template: One that extends page.html.j2.
        values: What it shows, `title` and `figures` among them.
        figures_json: The charts of the figures.
        plotly: The library that draws them; empty for a page without.

    Returns:
        The page.
    """
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
    own = _source(environment, "figures.js")
    run = (plotly, own) if plotly else ()
    scripts = " ".join(f"'sha256-{_sha256(text)}'" for text in run) or "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {scripts}"
    return environment.get_template(template).render(
        values,
        figures_json=figures_json,
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


def _markdown(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("distft.report", "templates"),
        autoescape=False,
        finalize=_escape_markdown,  # which escapes in the way of Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.md.j2").render(_fields(page))


def _escape_markdown(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", text)
