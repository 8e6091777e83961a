"""A look at training rows in words, and for a terminal with or without colours."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from distft.data.guard import UNTRAINED_SHARE
from distft.data.manifest import DroppedRow
from distft.data.pieces import Piece
from distft.data.preview import Preview, ShownRow
from distft.report.show import number, percent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

TRAINED, SPECIAL, LABEL, BAD = "bold green", "dim", "cyan", "bold red"
NEWLINE = "\u21b5"
_JOINERS = "\u200c\u200d"
"""Without them letters and emojis would fall apart; all else that is invisible is spelled out."""
_BAR_COLUMNS = 40
_BAR = "\u2588"


class Screen:
    """A look as rich prints it: trained text in bold green, or in [[ ]] where there is no colour.

    Args:
        preview: The look.
        page: Where it was written as a page, too.
    """

    def __init__(self, preview: Preview, page: Path | None = None) -> None:
        self._preview, self._page = preview, page

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        coloured = console.color_system is not None and not console.no_color
        # What is told last is what still stands on the screen.
        for row in self._preview.shown:
            yield _row(row, self._preview, coloured)
            yield ""
        yield _facts(self._preview, coloured)
        if self._preview.histogram:
            yield ""
            yield _bars(self._preview)
        for problem in problems(self._preview):
            yield Text(f"\n{problem}", style=BAD)
        if self._page is not None:
            yield Text(f"\nWrote {self._page}")


def visible(text: str) -> str:
    """Return a text in which nothing is hidden and nothing steers the terminal.

    Args:
        text: Any.

    Returns:
        The text with line breaks marked, and control and invisible characters spelled as escapes.
    """
    return "".join(map(_visible, text))


def problems(preview: Preview) -> list[str]:
    """Return why a run with these rows would stop, in sentences; empty where it would not."""
    rows, untrained = preview.sampled, preview.untrained
    found = []
    if rows == untrained + preview.unusable:
        reason, count = next(iter(preview.refused.items()))
        found.append(
            f"No training row can be used: a run stops. {count:,} of {rows:,}: {visible(reason)}."
        )
    elif untrained > UNTRAINED_SHARE * rows:
        found.append(
            f"{untrained:,} of {rows:,} training rows ({percent(untrained / rows)}) train nothing, "
            f"more than {UNTRAINED_SHARE:.0%}: a run stops. Raise data.cutoff_len, or mend or "
            "remove them."
        )
    if preview.ended == 0 and rows > untrained + preview.unusable:
        found.append(
            "No training row trains the end of an answer: a run stops. The chat template must "
            "close an answer with a special token, and data.cutoff_len leave room for it."
        )
    return found


def _visible(character: str) -> str:
    if character == "\n":
        return f"{NEWLINE}\n"
    kind = unicodedata.category(character)
    hidden = kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in f"\t{_JOINERS}"
    return character.encode("unicode_escape").decode() if hidden else character


def _row(row: ShownRow, preview: Preview, coloured: bool) -> RenderableType:
    parts: list[RenderableType] = [
        Text.assemble((f"{row.file}:{row.row}", "bold"), f"  {about(row, preview)}")
    ]
    if row.reason:
        parts += [Text(visible(row.reason), style=BAD)]
        parts += [Text(visible(row.raw))] if row.raw else []
        return Group(*parts)
    parts.append(_text(row.pieces, coloured))
    if row.target:
        parts += [Text("target:", style="bold"), _text(row.target, coloured)]
    if row.answer is not None:
        parts.append(Text.assemble(("to learn: ", "bold"), (visible(row.answer), LABEL)))
    return Group(*parts)


def _text(pieces: Sequence[Piece], coloured: bool) -> Text:
    said: list[tuple[str, str]] = []
    opened = False
    for piece in pieces:
        if not coloured and piece.trained is not opened:
            said.append(("", "[[" if piece.trained else "]]"))
            opened = piece.trained
        style = TRAINED if piece.trained else SPECIAL if piece.special else ""
        said.append((style, visible(piece.text)))
        if piece.label:
            said.append((LABEL, f"/{visible(piece.label)}"))
    if opened:
        said.append(("", "]]"))
    text = Text()
    # A colour begins where the style changes: within, it would part emojis of several tokens.
    for style, run in groupby(said, key=itemgetter(0)):
        text.append("".join(part for _, part in run), style=style)
    # The line that follows begins anew anyway.
    return text[:-1] if text.plain.endswith("\n") else text


def about(row: ShownRow, preview: Preview) -> str:
    """Return what is to be said of a row besides its text."""
    said = [] if row.fate in ("", "train", "unusable") else [row.fate]
    if row.reason:
        return ", ".join([*said, "cannot be used"])
    said.append(f"{row.tokens} tokens")
    if preview.trained_tokens is not None:
        said.append(f"{row.targets} {'trained in a step' if preview.masked else 'trained'}")
    return ", ".join([*said, "truncated"] if row.truncated else said)


def _facts(preview: Preview, coloured: bool) -> RichTable:
    facts = RichTable.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    rows = ", ".join(f"{split} {count:,}" for split, count in preview.rows.items())
    if not preview.complete:
        rows += ", extrapolated from the first 64 MiB of each split's files"
    told = {
        "task": f"{preview.task}, format {preview.format}, model {preview.model}",
        "rows": rows,
        "dropped": _dropped(preview),
        "looked at": looked_at(preview),
        "tokens": lengths(preview),
        "trained": trained(preview),
        "end of answer": _ended(preview),
        "truncated": share(preview.truncated, preview) + _firsts(preview.truncated_rows),
        "train nothing": share(preview.untrained, preview),
        "unusable": share(preview.unusable, preview) if preview.unusable else "",
        "": _refused(preview),
        "marked": legend(preview, "bold and green" if coloured else "in [[ ]]"),
    }
    for name, text in told.items():
        if text:
            facts.add_row(name, Text(text))
    return facts


def _bars(preview: Preview) -> RichTable:
    drawn = RichTable.grid(padding=(0, 2))
    for name in ("tokens", "rows", ""):
        drawn.add_column(no_wrap=True, justify="right" if name else "left")
    drawn.add_row(Text("tokens", style="bold"), Text("rows", style="bold"), "")
    most = max(each.rows for each in preview.histogram)
    for each in preview.histogram:
        # A row that is there is seen.
        length = -(-each.rows * _BAR_COLUMNS // most)
        drawn.add_row(span(each.first, each.last), f"{each.rows:,}", Text(_BAR * length))
    return drawn


def span(first: int, last: int) -> str:
    """Return the range of a bin."""
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def where(one: DroppedRow) -> str:
    """Return a row's name as messages have it."""
    return visible(f"{one.file}:{one.row}")


def _firsts(rows: Sequence[DroppedRow]) -> str:
    if not rows:
        return ""
    more = (f", :{one.row}" for one in rows[1:] if one.file == rows[0].file)
    return f", first {where(rows[0])}{''.join(islice(more, 4))}"


def share(count: int, preview: Preview) -> str:
    """Return a number of rows, and their share of those looked at."""
    rows = "row" if count == 1 else "rows"
    return f"{count:,} {rows} ({percent(count / preview.sampled)})" if count else "no row"


def _dropped(preview: Preview) -> str:
    firsts = {one.reason: one for one in preview.dropped_rows}
    return "\n".join(
        f"{count:,} {visible(reason)}"
        + (f" (first {where(firsts[reason])})" if reason in firsts else "")
        for reason, count in preview.dropped.items()
    )


def _refused(preview: Preview) -> str:
    said = [f"{where(one)}: {visible(one.reason)}" for one in preview.refused_rows]
    more = preview.untrained + preview.unusable - len(said)
    return "\n".join([*said, f"and {more:,} more"] if more else said)


def looked_at(preview: Preview) -> str:
    """Return which rows the numbers speak of."""
    train = preview.rows["train"]
    if preview.sampled >= train:
        return f"all {preview.sampled:,} training rows"
    return f"{preview.sampled:,} of {train:,} training rows, drawn by the hash of their input"


def lengths(preview: Preview) -> str:
    """Return how many tokens rows have; empty where none can be used."""
    if not preview.histogram:
        return ""
    return (
        f"{number(preview.mean_tokens)} a row on average, median {preview.median_tokens:,}, 95 % "
        f"at most {preview.p95_tokens:,}, longest {preview.max_tokens:,}; data.cutoff_len is "
        f"{preview.cutoff_len:,}"
    )


def trained(preview: Preview) -> str:
    """Return how much of the tokens is trained; empty where no row can be used."""
    if preview.trained_tokens is None:
        return "every row as a whole"
    if not preview.tokens:
        return ""
    part = percent(preview.trained_tokens / preview.tokens)
    text = f"{part} of the tokens ({preview.trained_tokens:,} of {preview.tokens:,})"
    return f"{text}, drawn anew in every step" if preview.masked else text


def _ended(preview: Preview) -> str:
    return "" if preview.ended is None else f"trained in {share(preview.ended, preview)}"


def legend(preview: Preview, how: str) -> str:
    """Return what the marks of the shown rows mean; empty where nothing is marked."""
    if preview.trained_tokens is None or not any(row.pieces for row in preview.shown):
        return ""
    if preview.masked:
        return f"{how}: may be hidden and asked for"
    named = any(piece.label for row in preview.shown for piece in row.pieces)
    return f"{how}: trained{', with its class where that is not O' if named else ''}"
