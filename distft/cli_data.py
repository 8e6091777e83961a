"""The commands below `distft data`: a look at the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distft.cli_arguments import Config, Json, Overrides
from distft.output import answer

app = typer.Typer(help="Look at the data: `distft data preview CONFIG`.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def preview(
    config: Config,
    overrides: Overrides = None,
    rows: Annotated[
        int, typer.Option("--rows", min=0, metavar="N", help="How many rows are shown in full.")
    ] = 5,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="FILE:ROW", help="Show this one, as messages name it."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show rows as the model sees them: what is trained, how long they are, what is lost."""
    from distft import api, config_file
    from distft.report.preview import Screen

    with answer(as_json) as show:
        seen = api.preview(config_file.load(config, overrides or []), rows=rows, row=row, html=html)
        show(seen.model_dump(), Screen(seen, html))
