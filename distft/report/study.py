"""The report of a study: report.html, report.md and report.json in its directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from distft.report import (
    render,
    results,
    study_document,
    study_figures,
    study_settings,
    study_tables,
    study_verdict,
)
from distft.report.show import Document, Section


def build(study_dir: Path) -> dict[str, str]:
    """Write the report of a study, finished or not.

    Args:
        study_dir: A study directory with a study.json and a trials.jsonl.

    Returns:
        `html`, `md` and `json`: the paths written. Each file is replaced whole or not at all.

    Raises:
        ConfigError: The directory holds no study, or a file in it cannot be read.
    """
    study_dir = Path(study_dir)
    content = read(study_dir)
    return render.write(study_dir, _page(content, study_dir), content)


def read(study_dir: Path) -> Document:
    """Return the document of a study with its verdict; see `study_document.read`."""
    content = study_document.read(study_dir)
    content["verdict"] = study_verdict.judged(content)
    return content


def _page(content: Document, study_dir: Path) -> render.Page:
    study, config = content["study"], content["study"]["config"]
    sections: list[Section | None] = [
        study_tables.leaderboard(content),
        *(_of_the_winner(content) if content["run"] else ()),
        study_tables.troubles(content),
        study_settings.budget(content),
        study_settings.space(content),
        study_settings.configs(content),
        study_settings.provenance(content),
    ]
    described = [
        render.variant(config.get("model"), "id"),
        render.variant(config.get("task")),
        f"search over {', '.join(study['space'])}" if study["space"] else "",
    ]
    winners = study_tables.winners(content)
    return render.Page(
        title=study["name"],
        status=study["status"],
        described=[word for word in described if word],
        verdict=content["verdict"]["sentence"],
        further=content["verdict"]["price"],
        started=study["started"],
        sources="study.json, trials.jsonl and the winner's run.json",
        error=render.told(study["error"]),
        link=_link(content, study_dir),
        strip=study_tables.strip(content),
        first=[winners] if winners.is_filled else [],
        figures_title="The search in figures",
        figures=study_figures.figures(content),
        sections=[section for section in sections if section and section.is_filled],
        commands=study_settings.commands(content, study_dir),
    )


def _of_the_winner(content: Document) -> list[Section | None]:
    told = (results.comparison(content), results.classes(content), results.errors(content))
    return [
        section and replace(section, title=f"The winner: {section.title.lower()}")
        for section in told
    ]


def _link(content: Document, study_dir: Path) -> tuple[str, str] | None:
    winner = content["study"]["winner"]
    if not winner or not (study_dir / winner / "report.html").is_file():
        return None
    return "Report of the winner's training", quote(f"{winner}/report.html")
