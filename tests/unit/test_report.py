"""The report of a run: three files that agree, from any run, with hostile text in it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from distft.errors import ConfigError
from distft.records import write_json
from distft.report import run
from distft.report.document import last_attempt
from distft.report.show import label, look_up, number, pointer, size

RUNS = runpy.run_path(str(Path(__file__).parents[1] / "report_runs.py"))
write_run = RUNS["write_run"]
Page = runpy.run_path(str(Path(__file__).parents[1] / "report_pages.py"))["Page"]

HOSTILE = (
    "<script>alert(1)</script>",
    "\u4e2d\u6587",
    'a|b "c" `d`',
    "</script><img src=x onerror=alert(2)>",
    "{{ 7 * 7 }}",
    "~/\u2028'",
)
KILLED = {
    "error": "TrainError",
    "message": "worker 1 was killed by <signal 9>.\nThe node had 212 MiB left.",
    "hint": "Use cluster.zero_stage=3.",
    "exit_code": 4,
}


def report(run_dir: Path) -> tuple[Any, str, dict[str, Any]]:
    """Build the report of a run directory; return its page, Markdown and JSON."""
    paths = run.build(run_dir)
    assert set(paths) == {"html", "md", "json"}
    html, markdown, text = (
        Path(paths[kind]).read_text(encoding="utf-8") for kind in ("html", "md", "json")
    )
    return Page(html), markdown, json.loads(text)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    write_run(tmp_path / "quickstart")
    return tmp_path / "quickstart"


def test_the_verdict_names_base_tuned_and_majority_of_the_test_rows(done: Path) -> None:
    page, markdown, document = report(done)
    test = json.loads((done / "eval.json").read_text())["test"]
    base, tuned = test["base"]["eval_accuracy"], test["tuned"]["eval_accuracy"]
    majority = test["tuned"]["eval_majority_accuracy"]
    verdict = document["verdict"]
    assert (verdict["base"], verdict["tuned"], verdict["majority"]) == (base, tuned, majority)
    assert verdict["sentence"] == (
        f"On 371 test rows accuracy rose from {base:.4f} to {tuned:.4f}, "
        f"{tuned - majority:.4f} above always answering the most frequent class ({majority:.4f})."
    )
    assert verdict["sentence"] in page.text
    assert verdict["sentence"] in markdown


def test_a_model_below_the_majority_is_not_praised(done: Path) -> None:
    evaluations = json.loads((done / "eval.json").read_text())
    evaluations["test"]["tuned"].update(eval_accuracy=0.41, eval_majority_accuracy=0.47)
    write_json(done / "eval.json", evaluations)
    _, _, document = report(done)
    assert ", but 0.0600 below always answering" in document["verdict"]["sentence"]
    evaluations["test"]["tuned"].update(eval_accuracy=0.47)
    write_json(done / "eval.json", evaluations)
    _, _, document = report(done)
    assert document["verdict"]["sentence"].endswith(
        "to 0.4700, the same as always answering the most frequent class."
    )


def test_every_number_of_the_page_is_the_number_of_the_json(done: Path) -> None:
    page, _, document = report(done)
    assert len(page.values) > 80
    for at, value, _ in page.values:
        assert look_up(document, at) == value, at
    shown = {at: text for at, _, text in page.values}
    assert shown["/plan/params"] == "22,863,363"
    assert shown["/run/peak_memory_bytes/measured"] == "1.31 GiB"
    tuned = document["evaluations"]["test"]["tuned"]
    for name, scores in tuned["eval_per_class"].items():
        path = pointer("evaluations", "test", "tuned", "eval_per_class", name)
        assert shown[f"{path}/f1"] == number(scores["f1"])
        assert shown[f"{path}/support"] == number(scores["support"])
    cells = [text for at, text in shown.items() if "/eval_confusion/matrix/" in at]
    assert len(cells) == 9
    assert sum(map(int, cells)) == tuned["eval_rows"]


def test_the_markdown_holds_the_same_numbers(done: Path) -> None:
    page, markdown, _ = report(done)
    cells = {cell.strip() for line in markdown.splitlines() for cell in line.split("|")}
    missing = {text for _, _, text in page.values} - cells
    assert not missing


def test_nothing_is_loaded_from_elsewhere(done: Path) -> None:
    page, _, _ = report(done)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "action", "data"):
            assert not attributes.get(name), (tag, name)
    style = "".join(page.styles)
    assert style
    assert not re.search(r"@import|url\(|https?:", style)
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'")


def test_the_plot_library_is_embedded_once(done: Path) -> None:
    run.build(done)
    text = (done / "report.html").read_text(encoding="utf-8")
    assert text.count("* plotly.js v") == 1
    assert text.count("<script") - text.count('<script type="application/json"') < 10


def test_both_themes_and_print_are_there(done: Path) -> None:
    page, _, _ = report(done)
    style = "".join(page.styles)
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    used = set(re.findall(r"var\((--[a-z]+)\)", style)) - {"--share", "--tint"}
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for name in used:
        assert f"{name}:" in light.split("}")[0], name
        assert f"{name}:" in dark.split("}")[0], name


def test_the_page_can_be_read_without_eyes(done: Path) -> None:
    page, _, _ = report(done)
    count = [tag for tag, _ in page.tags].count
    assert count("h1") == 1
    assert count("main") == 1
    assert count("caption") == count("table") > 5
    plots = [a for _, a in page.tags if a.get("class") == "plot"]
    assert len(plots) == 4 == count("figcaption")
    assert all(plot["role"] == "img" and len(plot["aria-label"] or "") > 30 for plot in plots)
    boxes = [a for _, a in page.tags if a.get("class") == "scroll"]
    assert len(boxes) == count("table")
    assert all(box.get("tabindex") == "0" and box.get("aria-label") for box in boxes)
    assert all(a.get("scope") in {"col", "row"} for tag, a in page.tags if tag == "th")


def test_the_best_checkpoint_is_marked(done: Path) -> None:
    run.build(done)
    text = (done / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text)
    assert found is not None
    figures = {figure["id"]: figure["spec"] for figure in json.loads(found.group(1))}
    assert list(figures) == [
        "figure-loss",
        "figure-metric",
        "figure-learning_rate",
        "figure-grad_norm",
    ]
    best = json.loads((done / "eval.json").read_text())["best"]
    for name, metric in (("figure-loss", "eval_loss"), ("figure-metric", "eval_accuracy")):
        marked = [trace for trace in figures[name]["data"] if trace["name"] == "best checkpoint"]
        assert [(t["x"], t["y"]) for t in marked] == [([138], [best[metric]])]


def test_hostile_labels_are_only_text(tmp_path: Path) -> None:
    write_run(tmp_path / "hostile", labels=HOSTILE)
    page, markdown, document = report(tmp_path / "hostile")
    assert "img" not in {tag for tag, _ in page.tags}
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == [
        None,
        "application/json",
        None,
    ]
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text
    per_class = document["evaluations"]["test"]["tuned"]["eval_per_class"]
    assert tuple(per_class) == HOSTILE
    for at, value, _ in page.values:
        assert look_up(document, at) == value, at
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert 'a\\|b "c" \\`d\\`' in markdown
    assert "\u4e2d\u6587" in markdown


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(tmp_path: Path) -> None:
    write_run(tmp_path / "hostile", labels=HOSTILE)
    _, markdown, _ = report(tmp_path / "hostile")
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
        assert re.fullmatch(r"\|( -{3}:? \|)+", table.splitlines()[1].strip()), table


def test_a_failed_run_shows_its_error_and_how_to_go_on(tmp_path: Path) -> None:
    write_run(tmp_path / "failed", status="failed", error=KILLED)
    page, markdown, document = report(tmp_path / "failed")
    step = max(line["step"] for line in document["metrics"])
    sentence = f"The run failed after step {step} of 230: worker 1 was killed by <signal 9>."
    assert document["verdict"]["sentence"] == sentence
    assert sentence in page.text
    assert KILLED["hint"] in page.text
    assert "The node had 212 MiB left." in markdown
    config_file = tmp_path / "failed" / "config.yaml"
    assert f"distft train {config_file}" in page.text
    assert "distft export" not in page.text
    eval_head = next(line for line in markdown.splitlines() if line.startswith("| metric"))
    assert eval_head.split() == ["|", "metric", "|", "before", "|"]


def test_a_run_that_failed_before_its_first_step_has_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "early", status="interrupted")
    for name in ("metrics.jsonl", "plan.json"):
        (tmp_path / "early" / name).unlink()
    page, _, document = report(tmp_path / "early")
    assert document["verdict"]["sentence"] == "The run was interrupted before its first step."
    assert document["plan"] == {} == document["evaluations"]
    assert "plot" not in {a.get("class") for _, a in page.tags}


def test_a_generative_run_is_told_by_loss_and_perplexity_too(tmp_path: Path) -> None:
    write_run(tmp_path / "sft", task="sft")
    page, _, document = report(tmp_path / "sft")
    test = document["evaluations"]["test"]
    losses = (number(test[which]["eval_loss"]) for which in ("base", "tuned"))
    assert "(loss {} to {}, perplexity ".format(*losses) in document["verdict"]["sentence"]
    assert document["verdict"]["majority"] is None
    assert "Confusion matrix" not in page.text


def test_an_unknown_metric_is_shown_too(done: Path) -> None:
    evaluations = json.loads((done / "eval.json").read_text())
    evaluations["test"]["tuned"]["eval_cohen_kappa"] = 0.5512
    write_json(done / "eval.json", evaluations)
    page, markdown, _ = report(done)
    assert "cohen kappa" in page.text
    assert "0.5512" in markdown


def test_torn_lines_and_numbers_that_are_not_finite_do_no_harm(done: Path) -> None:
    path = done / "metrics.jsonl"
    whole = path.read_bytes()
    label_start = "\u4e2d".encode()[:2]
    path.write_bytes(whole + b'{"step": 231, "loss": NaN}\n{"step": 235, "x": "' + label_start)
    _, _, document = report(done)
    assert document["metrics"][-1] == {"step": 231, "loss": None}
    assert len(document["metrics"]) == whole.count(b"\n") + 1


def test_a_step_done_again_after_a_restart_counts_once() -> None:
    def training(step: int, attempt: int) -> dict[str, int]:
        return {"step": step, "loss": attempt}

    def evaluation(step: int, attempt: int) -> dict[str, int]:
        return {"step": step, "eval_loss": attempt}

    written = [evaluation(0, 1), training(5, 1), training(10, 1), evaluation(10, 1)]
    written += [training(15, 1), training(10, 2), evaluation(10, 2), training(15, 2)]
    assert last_attempt(written) == [
        evaluation(0, 1),
        training(5, 1),
        training(10, 2),
        evaluation(10, 2),
        training(15, 2),
    ]


def test_derived_values_stand_with_their_reason(done: Path) -> None:
    page, _, document = report(done)
    for key, reason in document["plan"]["reasons"].items():
        assert key in page.text
        assert reason in page.text
    shown = {at: value for at, value, _ in page.values}
    assert shown["/plan/learning_rate"] == 0.001


def test_rows_left_out_are_counted_with_their_reason(done: Path) -> None:
    page, markdown, _ = report(done)
    shown = {at: value for at, value, _ in page.values}
    assert shown["/run/data/dropped/the text is empty"] == 3
    assert shown["/run/data/truncated/test"] == 2
    assert "| dropped: its text stands in another split | 41 |" in markdown


def test_mixed_sets_are_shown_with_share_rows_and_passes(done: Path) -> None:
    assert "Training sets" not in report(done)[1]
    plan = json.loads((done / "plan.json").read_text())
    shares = {"data.train": (0.7, 2972, 3.0), "general|2.jsonl": (0.3, 61, 62.6)}
    keys = ("share", "rows", "passes")
    plan["mix"] = [
        {"name": name, **dict(zip(keys, values, strict=True))} for name, values in shares.items()
    ]
    write_json(done / "plan.json", plan)
    _, markdown, _ = report(done)
    assert "### Training sets" in markdown
    assert "| data.train | 70.0 % | 2,972 | 3.000 |" in markdown
    assert r"| general\|2.jsonl | 30.0 % | 61 | 62.60 |" in markdown


def test_commands_survive_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my runs; rm x" / "quickstart"
    write_run(folder)
    _, markdown, _ = report(folder)
    assert f"distft evaluate '{folder}'" in markdown
    assert f"distft train '{folder}/config.yaml' name=quickstart-again" in markdown


def test_building_twice_gives_the_same_bytes(done: Path) -> None:
    paths = [Path(path) for path in run.build(done).values()]
    first = [path.read_bytes() for path in paths]
    run.build(done)
    assert [path.read_bytes() for path in paths] == first
    assert not list(done.glob(".report*"))


def test_what_is_no_run_is_refused(tmp_path: Path, done: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json"):
        run.build(tmp_path)
    (done / "plan.json").write_text('{"params": ', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"plan\.json is not JSON"):
        run.build(done)
    assert not list(done.glob("report.*"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (371, "371"),
        (22_863_363, "22,863,363"),
        (0.71159, "0.7116"),
        (-0.38, "-0.3800"),
        (2.24, "2.240"),
        (19.3, "19.30"),
        (2_048.0, "2,048"),
        (1_653.4, "1,653"),
        (2e-4, "2.00e-04"),
        (float("inf"), "not finite"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_sizes_and_names_are_words() -> None:
    assert size(1_402_118_144) == "1.31 GiB"
    assert size(900) == "900 B"
    assert label("eval_f1_macro") == "macro F1"
    assert label("eval_token_accuracy") == "token accuracy"
