"""Arguments and options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Config file (YAML).", show_default=False)
]
Variant = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Show only this one, in full.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that win over the file, such as train.max_steps=50.",
        show_default=False,
    ),
]
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Run directory that `train` wrote, or `tune` as STUDY/winner.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, logs on stderr.")]
