"""The commands. Each body reads its input, calls one function of `distft.api` and shows the result.

Nothing heavy is imported before a command needs it: `distft --help` stays quick.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from distft import __version__, cli_data, cli_jobs, compat, plugin, redact
from distft.cli_arguments import Config, Json, Overrides, Run, Variant
from distft.errors import ConfigError, DistftError, PlanError
from distft.output import Show, answer, lines, one_of, table, write_new, written

INTERRUPTED = 130
FAILED = 4

app = typer.Typer(
    help="Fine-tune language models with Ray and DeepSpeed: searched, planned, proven, resumable.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 2 wrong input, 3 refused, 4 the run failed, 75 the cluster was "
    "lost or does not answer and the same command may succeed, 130 interrupted.",
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_jobs.app)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that go with every command; `main` reads --debug itself, wherever it stands."""


@app.command()
def plan(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Derive every setting, estimate memory and steps; launch nothing."""
    from distft import api, config_file

    with answer(as_json) as show:
        made = api.plan(config_file.load(config, overrides or []))
        show(made.model_dump(), made.render())


@app.command()
def prepare(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Turn raw files into tokenized shards and a manifest, once."""
    from distft import api, config_file

    with answer(as_json) as show:
        manifest = api.prepare(config_file.load(config, overrides or []))
        show(manifest.model_dump(), lines(manifest.summary()))


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete this run and begin again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train, evaluate, export and report; again: resume."""
    from distft import api, config_file

    with answer(as_json) as show:
        loaded = config_file.load(config, overrides or [])
        record = api.train(loaded, fresh=fresh)
        show(record.model_dump(), "")


@app.command()
def tune(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Config file (YAML).")
    ] = None,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete this study and begin again.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines for a log, not a screen.")] = False,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", metavar="CURVES", help="Score policies on recorded curves."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search method, rank and learning rate, then train the winner; again: resume."""
    from distft import api, config_file

    if (config is None) == (replay is None):
        raise ConfigError("tune takes a CONFIG, or --replay CURVES.", "See: distft tune --help.")
    with answer(as_json) as show:
        if config is None:
            scored = api.replay(Path(str(replay)))
            show(scored.model_dump(), scored.render())
        else:
            loaded = config_file.load(config, overrides or [])
            show(api.tune(loaded, fresh=fresh, plain=plain).model_dump(), "")


@app.command()
def evaluate(
    run: Run,
    data: Annotated[
        str | None, typer.Option("--data", help="Evaluate on this file, not the run's test rows.")
    ] = None,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate", help="Also write answers and compare them: BLEU, chrF, ROUGE, equal ones."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compute the metrics of a run's model, with a per-class report."""
    from distft import api

    with answer(as_json) as show:
        metrics = api.evaluate(run, data, generate=generate)
        show(metrics, lines(metrics))


@app.command()
def predict(
    run: Run,
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Rows: .jsonl, .csv, .txt, .parquet ...")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="JSONL file to write.")],
    as_json: Json = False,
) -> None:
    """Write the predictions of a run's model for the rows of a file."""
    from distft import api

    with answer(as_json) as show:
        done = api.predict(run, source, target)
        show(done, lines(done))


@app.command()
def export(
    run: Run,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold the adapter into the base weights.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run's model as a Hugging Face folder, verified."""
    from distft import api

    with answer(as_json) as show:
        done = api.export(run, target, merge=merge)
        show(done, lines(done))


@app.command()
def report(run: Run, as_json: Json = False) -> None:
    """Write a run's or a study's report as HTML, Markdown and JSON."""
    from distft import api

    with answer(as_json) as show:
        written = api.report(run)
        show(written, lines(written))


@app.command()
def init(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write; default: stdout.")
    ] = None,
    task: Annotated[str, typer.Option("--task", help="One of `distft tasks`.")] = "seq_cls",
    as_json: Json = False,
) -> None:
    """Write a commented starter config that runs as it is."""
    from distft.starter import starter

    with answer(as_json) as show:
        text = starter(task)
        if path is not None:
            write_new(path, text)
        said = text.removesuffix("\n") if path is None else written(path)
        show({"task": task, "path": path and str(path), "config": text}, said)


@app.command()
def migrate(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Their YAML.", show_default=False)],
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="File to write; default: stdout.")
    ] = None,
    dataset_dir: Annotated[
        Path | None,
        typer.Option("--dataset-dir", metavar="DIR", help="Where their data sets lie."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a config of LLaMA-Factory or axolotl into one of distft; say what became of each key."""
    from distft.migrate import convert, writing

    with answer(as_json) as show:
        made = convert.migrate(source, dataset_dir)
        text = writing.config_text(made)
        if target is not None:
            write_new(target, text)
        sys.stderr.write(writing.listing(made) + "\n")
        said = text.removesuffix("\n") if target is None else written(target)
        show({**made.as_dict(), "path": target and str(target)}, said)


@app.command()
def methods(
    name: Variant = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="What each goes with, and why not (Markdown).")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the fine-tuning methods, or one with its keys."""
    with answer(as_json) as show:
        if matrix:
            show(compat.matrix(), compat.table())
            return
        rows = [
            {
                "name": method.name,
                "what": method.summary,
                "keys": _keys(method),
                "learning rate": method.learning_rate,
                "saved as": "adapter" if method.adapter else "whole model",
                "source": method.source,
            }
            for method in plugin.methods().values()
        ]
        _list(show, rows, name, ("name", "what", "learning rate", "saved as"))


@app.command()
def tasks(name: Variant = None, as_json: Json = False) -> None:
    """List the tasks, or one with its keys."""
    with answer(as_json) as show:
        rows = [
            {
                "name": task.name,
                "what": task.summary,
                "rows": ", ".join(task.rows),
                "keys": _keys(task),
                "metric": task.headline or task.objective,
                "source": task.source,
            }
            for task in plugin.tasks().values()
        ]
        _list(show, rows, name, ("name", "what", "rows", "metric"))


@app.command()
def formats(name: Variant = None, as_json: Json = False) -> None:
    """List the data formats, or one with its columns and a row of it."""
    with answer(as_json) as show:
        rows = [
            {
                "name": each.name,
                "what": each.summary,
                "rows": each.row,
                "columns": dict(each.columns),
                "example": dict(each.example),
            }
            for each in plugin.formats().values()
        ]
        _list(show, rows, name, ("name", "what", "rows"))


@app.command()
def templates(name: Variant = None, as_json: Json = False) -> None:
    """List the chat templates, or one with its text."""
    with answer(as_json) as show:
        rows = [{**vars(each), "what": each.summary} for each in plugin.templates().values()]
        _list(show, rows, name, ("name", "what"))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check whether this machine can train, and say what to do."""
    from distft.doctor import examine

    with answer(as_json) as show:
        checks = [check.model_dump() for check in examine()]
        good = all(check["state"] != "bad" for check in checks)
        show({"ok": good, "checks": checks}, table(checks))
    if not good:
        raise typer.Exit(PlanError.exit_code)


@app.command()
def schema(as_json: Json = False) -> None:
    """Print the JSON schema of a config file."""
    from distft.schema import json_schema

    with answer(as_json) as show:
        document = json_schema()
        show(document, json.dumps(document, indent=2))


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    with answer(as_json) as show:
        show({"version": __version__}, __version__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: As after the program's name; default: those of this process.

    Returns:
        0 done, 2 wrong input, 3 refused, 4 the run failed, 75 lost, 130 interrupted.
    """
    with redact.streams():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(words: list[str]) -> int:
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    debug, as_json = "--debug" in words, "--json" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        # Typer turns Ctrl-C into this status by itself.
        status: int = app(words, standalone_mode=False, prog_name="distft") or 0
    except TyperException as error:
        hint = "See: distft --help, or distft COMMAND --help."
        document = ConfigError(error.format_message(), hint).as_dict()
        return _explain(error, document, debug, as_json)
    except DistftError as error:
        return _explain(error, error.as_dict(), debug, as_json)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback without --debug
        # Ray wraps what a task raised; the text of the wrapper is a traceback.
        cause = getattr(error, "cause", None) or error
        message = f"{type(cause).__name__}: {cause}".splitlines()[0]
        document = {"error": type(error).__name__, "message": message, "exit_code": FAILED}
        return _explain(error, {**document, "hint": "--debug shows the traceback."}, debug, as_json)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    if status == INTERRUPTED:
        sys.stderr.write("Interrupted. The same command continues a run or a study.\n")
    return status


def _explain(error: Exception, document: Mapping[str, Any], debug: bool, as_json: bool) -> int:
    if debug:
        traceback.print_exception(error)
    text = " ".join(part for part in (document["message"], document["hint"]) if part)
    sys.stderr.write(f"distft: {text}\n")
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return int(document["exit_code"])


def _list(
    show: Show, rows: Sequence[Mapping[str, Any]], name: str | None, columns: Sequence[str]
) -> None:
    if name is None:
        show(rows, table(rows, columns))
    else:
        row = one_of(rows, name)
        show(row, lines(row))


def _keys(variant: plugin.Method | plugin.Task) -> dict[str, Any]:
    """Return the default of every key, and what the key means."""
    return {
        name: {
            "default": field.get_default(call_default_factory=True),
            "what": " ".join((field.description or "").split()),
        }
        for name, field in variant.config.model_fields.items()
        if name != "name"
    }


if __name__ == "__main__":
    sys.exit(main())
