"""The report of one run: report.html, report.md and report.json in its directory."""

from __future__ import annotations

from pathlib import Path

from distft.report import document, figures, render, results, settings
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
    return render.write(run_dir, _page(content, run_dir), content)


def _page(content: Document, run_dir: Path) -> render.Page:
    run = content["run"]
    sections: list[Section | None] = [
        results.comparison(content),
        results.classes(content),
        results.errors(content),
        results.data(content),
        settings.planned(content),
        settings.config(content),
        settings.provenance(content),
    ]
    described = [
        run["model"]["id"],
        *(render.variant(run["config"].get(key)) for key in ("task", "method")),
    ]
    return render.Page(
        title=run["name"],
        status=run["status"],
        described=[word for word in described if word],
        verdict=content["verdict"]["sentence"],
        started=run["started"],
        sources="run.json, metrics.jsonl, eval.json and plan.json",
        error=render.told(run["error"]),
        strip=results.strip(content),
        figures=figures.curves(content),
        sections=[section for section in sections if section and section.is_filled],
        commands=settings.commands(content, run_dir),
    )
