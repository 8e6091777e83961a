"""The report in a real browser: figures drawn, both themes, phone width, nothing loaded."""

from __future__ import annotations

import base64
import itertools
import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distft import api
from distft.config_file import parse
from distft.records import read_study
from distft.report import run, study

RUNS = runpy.run_path(str(Path(__file__).parents[1] / "report_runs.py"))
STUDIES = runpy.run_path(str(Path(__file__).parents[1] / "report_studies.py"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LABELS = ("<script>document.title = 'broken'</script>", "\u4e2d\u6587", "a" * 60, "good")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: sudo apt-get install -y chromium"),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]


class Browser:
    """A headless Chromium with one tab, driven through its debugging pipe (descriptors 3, 4)."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        command = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._ids = itertools.count(1)
        self._rest = b""
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "the browser ended"
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        received: dict[str, Any] = json.loads(message)
        return received

    def show(self, path: Path, width: int, theme: str) -> None:
        """Load a page at a width in a theme; return when its figures are drawn."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", media="screen", features=[feature])
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        # Two frames: plotly has drawn, the observer of its size has answered.
        self.ask("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def ask(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[dict[str, Any]]:
        """Return what the page logged or threw since it was loaded."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event for event in self.events if event["method"] in kinds]

    def requested(self) -> list[str]:
        """Return every address asked for since the page was loaded."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "quickstart"
    RUNS["write_run"](run_dir, labels=LABELS)
    return Path(run.build(run_dir)["html"])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_drawn_and_nothing_overflows(
    browser: Browser, page: Path, width: int, theme: str, tmp_path: Path
) -> None:
    browser.show(page, width, theme)
    assert browser.complaints() == []
    assert browser.requested() == [page.as_uri()]
    assert browser.ask("document.title") == "quickstart - distft report"
    lines = "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.trace').length)"
    assert browser.ask(lines) == [3, 2, 1, 1]
    assert (
        browser.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        == 0
    )
    fits = (
        "[...document.querySelectorAll('.plot')].map(p => "
        "p.querySelector('.main-svg').getBoundingClientRect().width - p.clientWidth)"
    )
    assert all(abs(excess) <= 1 for excess in browser.ask(fits))
    picture = tmp_path / f"report-{width}-{theme}.png"
    shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True)
    picture.write_bytes(base64.b64decode(shot["data"]))
    assert picture.stat().st_size > 20_000


LUMINANCE = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const card = luminance(getComputedStyle(document.querySelector("figure")).backgroundColor);
  const contrast = (colour) => {
    const [high, low] = [luminance(colour), card].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const colour = (query, key) =>
    [...document.querySelectorAll(query)].map((part) => contrast(getComputedStyle(part)[key]));
  return {
    card,
    text: [
      ...colour("figcaption, td, th, dd, dt, td span, .block:not(:has(.matrix)) data", "color"),
      ...colour(".plot text", "fill"),
    ],
    lines: colour(".plot .scatterlayer .js-line", "stroke"),
  };
})()"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out_from_their_card(browser: Browser, page: Path, theme: str) -> None:
    """WCAG 2.2: 4.5 for text, 3 for graphics."""
    browser.show(page, 1280, theme)
    seen = browser.ask(LUMINANCE)
    assert (seen["card"] > 0.5) is (theme == "light")
    assert min(seen["text"]) >= 4.5
    assert len(seen["lines"]) == 5
    assert min(seen["lines"]) >= 3


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study_dir = tmp_path_factory.mktemp("studies") / "quickstart"
    STUDIES["write_study"](study_dir)
    record, trials = read_study(study_dir)
    hostile = [
        trial.model_copy(update={"params": {**trial.params, "data.format": LABELS[0]}})
        for trial in trials
    ]
    STUDIES["rewrite"](study_dir, record, hostile)
    run.build(study_dir / "winner")
    return Path(study.build(study_dir)["html"])


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_of_a_study_is_drawn_and_stays_in_its_width(
    browser: Browser, study_page: Path, width: int, theme: str
) -> None:
    browser.show(study_page, width, theme)
    assert browser.complaints() == []
    assert browser.requested() == [study_page.as_uri()]
    assert browser.ask("document.title") == "quickstart - distft report"
    drawn = "p => p.querySelectorAll('.js-line, .point, .bars path').length"
    counts = browser.ask(f"[...document.querySelectorAll('.plot')].map({drawn})")
    assert len(counts) == 5
    assert min(counts) > 4
    page = "document.documentElement"
    assert browser.ask(f"{page}.scrollWidth - {page}.clientWidth") == 0
    excess = (
        "[...document.querySelectorAll('.plot')].map(p => "
        "p.querySelector('.main-svg').getBoundingClientRect().width - p.clientWidth)"
    )
    assert all(abs(one) <= 1 for one in browser.ask(excess))
    seen = browser.ask(LUMINANCE)
    assert (seen["card"] > 0.5) is (theme == "light")
    assert min(seen["text"]) >= 4.5
    assert min(seen["lines"]) >= 3


def test_a_long_leaderboard_scrolls_with_head_and_trial_in_view(
    browser: Browser, study_page: Path
) -> None:
    browser.show(study_page, 375, "light")
    kept = """(() => {
      const table = document.querySelector("#leaderboard ~ .tables .board");
      const box = table.parentElement;
      box.scrollTo(400, 200);
      const edge = box.getBoundingClientRect();
      const head = table.querySelector("thead th").getBoundingClientRect();
      const name = table.querySelector("tbody tr:last-child th").getBoundingClientRect();
      return [box.scrollLeft, head.top - edge.top, name.left - edge.left];
    })()"""
    scrolled, head, name = browser.ask(kept)
    assert scrolled > 0
    assert 0 <= head < 60
    assert abs(name) <= 2


def test_wide_tables_scroll_in_their_own_box(browser: Browser, page: Path) -> None:
    browser.show(page, 390, "light")
    sizes = browser.ask(
        "[...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth, b.clientWidth])"
    )
    assert any(inner > outer for inner, outer in sizes)
    assert all(outer <= 390 for _, outer in sizes)


def test_a_figure_follows_the_width_of_its_box(browser: Browser, page: Path) -> None:
    browser.show(page, 1280, "light")
    width = "document.querySelector('.plot .main-svg').getBoundingClientRect().width"
    wide = browser.ask(width)
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=900,
        deviceScaleFactor=1,
        mobile=True,
    )
    settled = f"""new Promise((done) => {{
      const look = () => {width} < 390 ? done({width}) : requestAnimationFrame(look);
      look();
    }})"""
    assert browser.ask(settled) < 390 < wide


def test_the_page_prints_light_and_with_every_key(browser: Browser, page: Path) -> None:
    browser.show(page, 1280, "dark")
    printed = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[feature])
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.ask("window.dispatchEvent(new Event('beforeprint')), null")
    assert browser.ask("document.querySelectorAll('details:not([open])').length") == 0
    browser.ask("window.dispatchEvent(new Event('afterprint')), null")
    assert browser.ask("document.querySelectorAll('details[open]').length") == 0


def test_a_script_that_slips_into_the_page_does_not_run(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    injected = "<body><script>document.title = 'broken'</script>"
    broken.write_text(text.replace("<body>", injected, 1), encoding="utf-8")
    browser.show(broken, 1280, "light")
    assert browser.ask("document.title") == "quickstart - distft report"
    assert any("Content Security Policy" in json.dumps(e) for e in browser.complaints())


@pytest.fixture(scope="module")
def preview_page(tmp_path_factory: pytest.TempPathFactory, chat_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i} {LABELS[i % 4]}"},
                {"role": "assistant", "content": f"{LABELS[0]} {'a' * 20 * (i % 9)}"},
            ]
        }
        for i in range(40)
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    raw = {"name": "look", "model": str(chat_llama), "data": {"train": str(folder / "t.jsonl")}}
    api.preview(parse(raw), rows=9, html=folder / "look.html")
    return folder / "look.html"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_preview_stands_out_and_nothing_overflows_or_runs(
    browser: Browser, preview_page: Path, width: int, theme: str
) -> None:
    browser.show(preview_page, width, theme)
    assert browser.complaints() == []
    assert browser.requested() == [preview_page.as_uri()]
    assert browser.ask("document.title") == "look - distft data preview"
    root = "document.documentElement"
    assert browser.ask(f"{root}.scrollWidth - {root}.clientWidth") == 0
    assert LABELS[0] in browser.ask("document.querySelector('.text').textContent")
    bars = browser.ask("[...document.querySelectorAll('.bars span')].map(b => b.offsetWidth)")
    assert max(bars) > 100
    assert min(bars) > 0
    parts = ".text span, .row h3 span, .strip dd, .bars th, .bars td"
    seen = LUMINANCE.replace('"figure"', '".row"').replace("figcaption, td, th, dd, dt", parts)
    assert min(browser.ask(seen)["text"]) >= 4.5
