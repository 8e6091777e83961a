"""The packaged models and data: what resolves, what is refused, what the conversion makes."""

from __future__ import annotations

import collections
import csv
import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from distft import assets
from distft.errors import ConfigError

Asset = Callable[[str], Path]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "distft" / "assets"


def test_a_missing_asset_is_told_with_the_install_line(empty_cache: Path) -> None:
    with pytest.raises(ConfigError, match="asset:minilm-l6 is not on this machine") as caught:
        assets.resolve("asset:minilm-l6", "model")
    assert caught.value.hint == "Fetch it: python -m distft.assets"
    assert not empty_cache.exists()


def test_an_unknown_asset_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean minilm-l6") as caught:
        assets.resolve("asset:minilm-l12", "model")
    assert "asset:smollm2-135m-instruct" in caught.value.hint
    assert "vader" not in caught.value.hint


def test_data_is_no_model() -> None:
    with pytest.raises(ConfigError, match=r"'asset:vader-amazon' \(data\) is no model"):
        assets.resolve("asset:vader-amazon", "model")


def test_every_package_is_pinned_and_every_kind_resolves_to_what_it_says() -> None:
    for name, asset in assets.ASSETS.items():
        assert asset.name == name
        assert len(asset.package.sha256) == 64
        assert bool(asset.file) == (asset.kind == "data")
        assert asset.folder.name == f"{name}-{asset.package.version}"


def wheel_index(folder: Path, name: str, version: str, content: dict[str, str]) -> str:
    """Write a wheel that pip finds in `folder`, and return its sha256."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in content.items():
            wheel.writestr(file, text)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_asset(sha256: str, convert: Callable[[Path, Path], None]) -> dict[str, assets.Asset]:
    package = assets.Package("distft_test_words", "1.0", sha256)
    return {
        "words": assets.Asset(
            name="words",
            kind="data",
            summary="",
            licence="",
            package=package,
            convert=convert,
            file="words.txt",
        )
    }


def copy_words(unpacked: Path, target: Path) -> None:
    (target / "words.txt").write_text((unpacked / "pack" / "words.txt").read_text())


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let pip find one wheel made here and nothing else; return its hash."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return wheel_index(folder, "distft_test_words", "1.0", {"pack/words.txt": "hello"})


def test_fetch_downloads_converts_and_then_finds_it(
    empty_cache: Path, local_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "ASSETS", one_asset(local_index, copy_words))
    (first,) = assets.fetch()
    assert first[1] > 0
    assert assets.resolve("asset:words", "data").read_text() == "hello"
    assert [path.name for path in empty_cache.iterdir()] == ["words-1.0"]
    (second,) = assets.fetch()
    assert second[1] == 0.0


def test_fetch_refuses_another_content_and_leaves_nothing(
    empty_cache: Path, local_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "0" * 64
    assert wrong != local_index
    monkeypatch.setattr(assets, "ASSETS", one_asset(wrong, copy_words))
    with pytest.raises(ConfigError, match="could not download distft_test_words") as caught:
        list(assets.fetch())
    assert wrong in str(caught.value)
    assert assets.INSTALL_LINE in caught.value.hint
    assert list(empty_cache.iterdir()) == []


def test_a_failing_conversion_leaves_nothing(
    empty_cache: Path, local_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(unpacked: Path, target: Path) -> None:
        (target / "half").write_text("half")
        raise RuntimeError(str(unpacked))

    monkeypatch.setattr(assets, "ASSETS", one_asset(local_index, fail))
    with pytest.raises(RuntimeError):
        list(assets.fetch())
    assert list(empty_cache.iterdir()) == []


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_text("x")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.add(payload, arcname="../escaped")
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as wheel:
        wheel.writestr("../escaped", "x")
    with pytest.raises(tarfile.OutsideDestinationError):
        assets._unpack(tmp_path / "evil.tar.gz", tmp_path / "deep" / "tar")
    assets._unpack(tmp_path / "evil.whl", tmp_path / "deep" / "zip")
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "deep" / "escaped").exists()


def test_vader_amazon_has_three_classes(asset: Asset) -> None:
    with asset("vader-amazon").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = collections.Counter(row["label"] for row in rows)
    assert labels == {"positive": 1725, "negative": 1218, "neutral": 765}
    assert all(row["text"].strip() for row in rows)


@pytest.mark.parametrize(
    ("rating", "label"),
    [(-4, "negative"), (-0.51, "negative"), (-0.5, "neutral"), (0.5, "neutral"), (0.6, "positive")],
)
def test_ratings_are_cut_at_half(rating: float, label: str) -> None:
    assert assets._sentiment(rating) == label


def test_chatterbot_has_no_copies_and_ends_with_answers(asset: Asset) -> None:
    text = asset("chatterbot-english").read_text(encoding="utf-8")
    rows = [json.loads(line)["messages"] for line in text.splitlines()]
    assert len(rows) == len({json.dumps(row) for row in rows}) == 898
    for row in rows:
        roles = [turn["role"] for turn in row]
        assert roles == ["user", "assistant"] * (len(row) // 2)


def test_main_says_one_line_each_and_is_done_the_second_time(asset: Asset) -> None:
    for name in assets.ASSETS:
        asset(name)
    command = [sys.executable, "-m", "distft.assets"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split(":")[1] for line in lines] == list(assets.ASSETS)
    assert all("here already" in line for line in lines)


def test_the_converted_model_is_plain_and_loads(asset: Asset) -> None:
    config = json.loads((asset("smollm2-135m-instruct") / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    folder = asset("smollm2-135m-instruct")
    assert (folder / "model.safetensors").stat().st_size > 500_000_000
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()


def test_vader_tweets_hold_their_mean_ratings(asset: Asset) -> None:
    with asset("vader-tweets").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ratings = [float(row["label"]) for row in rows]
    assert len(rows) == 4200
    assert -4 <= min(ratings) < -3 < 3 < max(ratings) <= 4
    assert len({rating for rating in ratings if not rating.is_integer()}) > 100


def test_vader_movie_text_is_one_snippet_a_line(asset: Asset) -> None:
    lines = asset("vader-movie-text").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 10605 + 1
    assert lines[-1] == ""
    assert all(lines[:-1])


def test_wnut_ner_has_a_tag_for_every_word(asset: Asset) -> None:
    text = asset("wnut-ner").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 2394
    assert all(len(row["tokens"]) == len(row["ner_tags"]) > 0 for row in rows)
    tags = collections.Counter(tag for row in rows for tag in row["ner_tags"])
    assert (tags["O"], tags["B-person"], tags["I-sportsteam"]) == (44007, 449, 23)
    assert len({tag[2:] for tag in tags if tag != "O"}) == 10
