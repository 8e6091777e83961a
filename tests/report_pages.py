"""A report's page as tests read it."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What stands in a page: tags with attributes, values with pointers, visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.values: list[tuple[str, float, str]] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self._open: dict[str, str | None] | None = None
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs) if tag == "data" else None
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles.append(data)
        elif self._inside != "script":
            self.words.append(data)
        if self._open is not None and "data-at" in self._open:
            at, value = self._open["data-at"], self._open["value"]
            assert at is not None
            assert value is not None
            self.values.append((at, float(value), data))
            self._open = None

    @property
    def text(self) -> str:
        """All visible words."""
        return " ".join(" ".join(self.words).split())
