"""The report of a study: three files that agree, at every moment of it, with hostile text in it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from distft.errors import ConfigError
from distft.records import StudyRecord, TrialRecord, read_study
from distft.report import study
from distft.report.show import look_up, number, percent, size
from distft.search.choose import ranked

TESTS = Path(__file__).parents[1]
STUDIES = runpy.run_path(str(TESTS / "report_studies.py"))
Page = runpy.run_path(str(TESTS / "report_pages.py"))["Page"]
write_study, rewrite = STUDIES["write_study"], STUDIES["rewrite"]

MOMENTS: dict[str, dict[str, Any]] = {
    "empty": {"phase": "empty"},
    "search": {"phase": "search"},
    "confirm": {"phase": "confirm"},
    "winner": {},
    "failed": {"phase": "failed"},
    "refused": {"phase": "refused"},
    "several": {"objective": ("eval_loss", "duration_s", "peak_memory")},
    "one-method": {"methods": ("lora",)},
    "one-trial": {"trials": 1, "troubles": False},
    "greater": {"objective": ("eval_accuracy",), "greater": True},
}
HOSTILE = "<script>alert(1)</script>|`x` \u4e2d"


def report(study_dir: Path) -> tuple[Any, str, dict[str, Any]]:
    """Build the report of a study; return its page, Markdown and JSON."""
    paths = study.build(study_dir)
    assert list(paths) == ["html", "md", "json"]
    html, markdown, text = (Path(path).read_text(encoding="utf-8") for path in paths.values())
    return Page(html), markdown, json.loads(text)


def figures(study_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of a page by id."""
    text = (study_dir / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text)
    return {one["id"]: one["spec"] for one in json.loads(found.group(1))} if found else {}


def edit(study_dir: Path, trials: list[TrialRecord] | None = None, **changes: Any) -> None:
    """Change the record of a study, or its trials."""
    record, old = read_study(study_dir)
    changed = StudyRecord.model_validate({**record.model_dump(), **changes})
    rewrite(study_dir, changed, old if trials is None else trials)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    write_study(tmp_path / "quickstart")
    return tmp_path / "quickstart"


@pytest.mark.parametrize("moment", MOMENTS)
def test_there_is_a_report_at_every_moment(tmp_path: Path, moment: str) -> None:
    record = write_study(tmp_path / moment, **MOMENTS[moment])
    page, markdown, document = report(tmp_path / moment)
    for at, value, _ in page.values:
        assert look_up(document, at) == value, at
    shown = {text for _, _, text in page.values}
    cells = {cell.strip() for line in markdown.splitlines() for cell in line.split("|")}
    assert not shown - cells
    assert document["verdict"]["sentence"] in page.text
    assert [trial["number"] for trial in document["trials"] if trial["study"] == "search"] == list(
        range(sum(record.counts.values()) - record.counts["reused"])
    )
    assert "None" not in page.text
    assert "nan" not in page.text.replace("step 14: nan", "")


def test_the_verdict_says_what_is_recommended_its_result_and_its_price(done: Path) -> None:
    page, _, document = report(done)
    record, trials = read_study(done)
    chosen = next(t for t in trials if t.study == "search" and t.number == record.recommended)
    best = next(t for t in trials if t.study == "search" and t.number == record.best_trial)
    assert chosen.number != best.number
    assert chosen.run is not None
    assert best.run is not None
    test = json.loads((done / "winner" / "run.json").read_text())["test"]
    sentence = document["verdict"]["sentence"]
    assert sentence.startswith(
        f"Recommended: lora, learning rate {chosen.params['train.learning_rate']:.3g}, "
        f"rank {chosen.params['method.r']} (trial {chosen.number}). On 371 test rows accuracy rose "
        f"from {test['base']['eval_accuracy']:.4f} to {test['tuned']['eval_accuracy']:.4f}"
    )
    price = document["verdict"]["price"]
    share = chosen.run.model.trainable_params / chosen.run.model.params
    assert f"It trains {percent(share)} of the parameters" in price
    assert f"{size(chosen.run.peak_memory_bytes['planned'])} a worker" in price
    assert f"trial {best.number} (full, " in price
    means = {one.trial: one.mean for one in record.candidates}
    gap = number(means[chosen.number] - means[best.number])
    assert f"is better by {gap}, within the tolerance of 0.0108" in price
    assert price in page.text


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("empty", "The search is running: 0 of 16 trials have finished."),
        ("search", "5 of 16 trials have finished. Best so far is trial 5, lora, "),
        ("confirm", "The search has ended; its best configurations are being confirmed."),
        ("refused", "All 16 trials were refused before launch: trainable_params: 22,713,216"),
        ("one-trial", "Recommended: full, learning rate 5.4e-05 (trial 0)."),
    ],
)
def test_the_verdict_of_what_is_not_done_says_so(tmp_path: Path, moment: str, said: str) -> None:
    write_study(tmp_path / moment, **MOMENTS[moment])
    _, _, document = report(tmp_path / moment)
    assert said in document["verdict"]["sentence"]


def test_a_failed_study_shows_its_error_and_how_to_go_on(tmp_path: Path) -> None:
    error = {"error": "SearchError", "message": "two <b> samples\nare one.", "hint": "Widen it."}
    write_study(tmp_path / "failed", phase="failed", error=error)
    page, markdown, document = report(tmp_path / "failed")
    sentence = document["verdict"]["sentence"]
    assert sentence.startswith("The study failed after 6 of 16 trials: two <b> samples. The best")
    assert "Widen it." in page.text
    assert "are one." in markdown
    assert "distft tune CONFIG.yaml" in page.text
    assert "distft export" not in page.text


def test_an_interrupted_study_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    write_study(tmp_path / "cut", phase="search")
    edit(tmp_path / "cut", status="interrupted")
    page, _, document = report(tmp_path / "cut")
    said = "The study was interrupted after 5 of 16 trials; the same command continues it. The best"
    assert document["verdict"]["sentence"].startswith(said)
    assert "Go on where it stopped" in page.text


def rows_of(markdown: str, caption: str) -> list[list[str]]:
    """Return the rows of a table of the Markdown as lists of cells."""
    (block,) = re.findall(rf"^### {re.escape(caption)}.*\n\n((?:\|.*\n)+)", markdown, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip(" |").split("|")] for line in block.splitlines()]
    return [rows[0], *rows[2:]]


def test_the_leaderboard_is_best_first_and_complete(done: Path) -> None:
    _, markdown, _ = report(done)
    _, trials = read_study(done)
    searched = [trial for trial in trials if trial.study == "search"]
    best = [trial.number for trial in ranked(searched, greater_is_better=False)]
    head, *rows = rows_of(markdown, "All 16 trials of the search")
    assert [int(row[0]) for row in rows if int(row[0]) in best] == best
    assert [row[head.index("state")] for row in rows[-2:]] == ["failed", "refused"]
    record, _ = read_study(done)
    means = {one.trial: one for one in record.candidates}
    for row in rows:
        trial = searched[int(row[0])]
        assert trial.run is not None
        by_name = dict(zip(head, row, strict=True))
        assert by_name["method"] == trial.method
        assert by_name["trained parameters"] == f"{trial.run.model.trainable_params:,}"
        assert by_name["planned"] == size(trial.run.peak_memory_bytes["planned"])
        assert by_name["saved"] == size(trial.saved_bytes)
        assert by_name["rank"] == str(trial.params.get("method.r", "-"))
        one = means.get(trial.number)
        assert by_name["mean over seeds"] == (number(one.mean) if one else "-")
        assert ("recommended" in by_name["state"]) is (trial.number == record.recommended)


def test_better_is_greater_where_the_study_says_so(tmp_path: Path) -> None:
    write_study(tmp_path / "greater", **MOMENTS["greater"])
    page, markdown, _ = report(tmp_path / "greater")
    head, *rows = rows_of(markdown, "All 16 trials of the search")
    _, trials = read_study(tmp_path / "greater")
    best = ranked([t for t in trials if t.study == "search"], greater_is_better=True)
    numbers = [trial.number for trial in best]
    assert [int(row[0]) for row in rows if int(row[0]) in numbers] == numbers
    whole = [float(row[head.index("accuracy")]) for row in rows[:3]]
    assert whole == sorted(whole, reverse=True)
    assert "Highest: " in page.text


def test_several_objectives_have_their_columns_and_their_pareto(tmp_path: Path) -> None:
    write_study(tmp_path / "several", **MOMENTS["several"])
    _, markdown, document = report(tmp_path / "several")
    head, *rows = rows_of(markdown, "All 16 trials of the search")
    trial = document["trials"][int(rows[0][0])]
    assert rows[0][head.index("peak memory")] == size(trial["values"][2])
    assert list(figures(tmp_path / "several"))[-1] == "figure-pareto-objective-1"


def test_what_was_confirmed_stands_with_seeds_and_the_rule(done: Path) -> None:
    page, markdown, _ = report(done)
    record, trials = read_study(done)
    head, *rows = rows_of(markdown, "Confirmed with further seeds")
    assert len(rows) == len(record.candidates) == 2
    verdicts = {int(row[0]): row[head.index("verdict")] for row in rows}
    assert verdicts[record.recommended] == "recommended"
    assert sorted(verdicts.values()) == ["near, but dearer", "recommended"]
    assert record.tolerance_from in page.text
    _, *seeds = rows_of(markdown, "Each confirmation")
    assert [row[0] for row in seeds] == [str(t.seed) for t in trials if t.study == "confirm"]


def test_confirmations_that_have_not_ended_are_not_called_failed(done: Path) -> None:
    record, trials = read_study(done)
    unknown = {"seeds": [], "values": [], "mean": None, "spread": None, "within_tolerance": False}
    waiting = [{**one.model_dump(), **unknown} for one in record.candidates]
    searched = [trial for trial in trials if trial.study == "search"]
    unknown_yet = {"recommended": None, "winner": None, "tolerance": None, "tolerance_from": ""}
    edit(done, searched, candidates=waiting, status="running", **unknown_yet)
    page, markdown, document = report(done)
    head, *rows = rows_of(markdown, "Confirmed with further seeds")
    assert [row[head.index("verdict")] for row in rows] == ["being confirmed"] * 2
    assert "best configurations are being confirmed" in document["verdict"]["sentence"]
    assert "tolerance" not in page.text.split("The search in figures")[0]
    edit(done, status="failed")
    head, *rows = rows_of(report(done)[1], "Confirmed with further seeds")
    assert [row[head.index("verdict")] for row in rows] == ["no seed finished"] * 2


def test_a_recommendation_without_confirmation_says_so(done: Path) -> None:
    edit(done, candidates=[], tolerance=None, tolerance_from="nothing to compare")
    page, _, document = report(done)
    assert "Not confirmed with further seeds: nothing to compare." in page.text
    assert "The best loss is that of trial 12 (full, " in document["verdict"]["price"]


def test_what_did_not_go_its_way_stands_with_its_reason(done: Path) -> None:
    page, markdown, _ = report(done)
    assert rows_of(markdown, "Failed")[1][:2] == ["4", STUDIES["REASONS"]["failed"]]
    assert rows_of(markdown, "Refused")[1][0] == "6"
    assert rows_of(markdown, "Not run again")[1][::2] == ["9", "0"]
    assert "stopped early, started 2 times" in page.text or "complete, started 2 times" in page.text


def test_the_budget_says_what_was_spent_and_what_ended_it(done: Path) -> None:
    page, markdown, _ = report(done)
    _, *rows = rows_of(markdown, "Budget of the search")
    assert rows[0] == ["trials", "16", "16", "100.0 %"]
    assert rows[2][:2] == ["training samples", "-"]
    assert "The search ended when its limit of trials was reached." in page.text
    _, *rungs = rows_of(markdown, "Rungs")
    for rung in rungs:
        assert int(rung[4]) == int(rung[5]) + int(rung[6])


def test_figures_show_every_curve_and_how_it_ended(done: Path) -> None:
    report(done)
    _, trials = read_study(done)
    drawn = figures(done)
    assert list(drawn) == [
        "figure-curves",
        "figure-learning-rate",
        "figure-importances",
        "figure-pareto-memory",
        "figure-pareto-params",
    ]
    own = [t for t in trials if t.study == "search" and t.curve and t.reused_from is None]
    lines = [one for one in drawn["figure-curves"]["data"] if "hovertemplate" in one]
    curves = [one for one in lines if one.get("line", {}).get("dash")]
    assert len(curves) == len(own)
    dotted = [one for one in curves if one["line"]["dash"] == "dot"]
    assert len(dotted) == sum(trial.state in ("pruned", "failed") for trial in own)
    crosses = [one for one in drawn["figure-curves"]["data"] if one.get("name") == "failed"]
    failed = next(trial for trial in own if trial.state == "failed")
    assert [(one["x"], one["y"]) for one in crosses] == [
        ([failed.samples], [failed.curve[-1]["value"]])
    ]
    rungs = drawn["figure-curves"]["layout"]["shapes"]
    assert [shape["x0"] for shape in rungs] == pytest.approx([96, 240, 480])
    assert drawn["figure-learning-rate"]["layout"]["xaxis"]["type"] == "log"


def test_the_front_holds_what_none_beats(done: Path) -> None:
    report(done)
    _, trials = read_study(done)
    whole = [
        (t.run.model.trainable_params, t.value)
        for t in trials
        if t.study == "search" and t.state == "complete" and t.run and t.value is not None
    ]
    front = [
        one
        for one in sorted(set(whole))
        if not any(c <= one[0] and v <= one[1] and (c, v) != one for c, v in whole)
    ]
    lines = [t for t in figures(done)["figure-pareto-params"]["data"] if t.get("name") == "front"]
    assert [list(zip(line["x"], line["y"], strict=True)) for line in lines] == [front]
    assert len(front) > 1


def test_effective_configs_stand_beside_each_other(done: Path) -> None:
    _, markdown, document = report(done)
    head, *rows = rows_of(markdown, "What the effective configs of 20 trials differ in")
    assert {"train.learning_rate", "method.name", "method.r", "train.seed"} <= set(head)
    for row in rows[:16]:
        trial = document["trials"][int(row[0])]
        rate = trial["params"]["train.learning_rate"]
        assert float(row[head.index("train.learning_rate")]) == rate


def test_the_commands_reproduce_the_winner_and_survive_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my runs; rm x" / "quickstart"
    write_study(folder)
    _, markdown, _ = report(folder)
    assert f"distft train '{folder}/best.yaml' name=quickstart-again" in markdown
    assert f"distft export '{folder}/winner' exported/quickstart --merge" in markdown
    assert f"distft predict '{folder}/winner' IN.jsonl OUT.jsonl" in markdown
    assert f"optuna-dashboard '{folder}/study.journal'" in markdown
    (folder / "config.yaml").write_text("model: x\n", encoding="utf-8")
    assert f"distft tune '{folder}/config.yaml' tune.num_trials=32" in report(folder)[1]


def test_the_winners_report_is_linked_where_it_is(done: Path) -> None:
    page, _, _ = report(done)
    assert [a["href"] for tag, a in page.tags if tag == "a"] == []
    (done / "winner" / "report.html").write_text("", encoding="utf-8")
    page, _, _ = report(done)
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["winner/report.html"]


def test_hostile_text_is_only_text(done: Path) -> None:
    record, trials = read_study(done)
    hostile = [
        trial.model_copy(
            update={
                "method": HOSTILE if trial.method == "freeze" else trial.method,
                "reason": HOSTILE,
                "params": {**trial.params, f"data.{HOSTILE}": HOSTILE},
            }
        )
        for trial in trials
    ]
    space = {HOSTILE: {HOSTILE: [HOSTILE, 1]}, "lora": {}}
    edit(done, hostile, space=space, ended_by=HOSTILE, tolerance_from=HOSTILE)
    page, markdown, document = report(done)
    scripts = [a.get("type") for tag, a in page.tags if tag == "script"]
    assert scripts == [None, "application/json", None]
    assert HOSTILE in page.text
    assert "<script" not in markdown
    for at, value, _ in page.values:
        assert look_up(document, at) == value, at
    assert record.name == "quickstart"
    # plotly reads some HTML in names and hovers.
    said = json.dumps([one["data"] for one in figures(done).values()])
    assert "<script" not in said.replace("<extra>", "")
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_numbers_that_are_not_finite_do_no_harm(done: Path) -> None:
    _, trials = read_study(done)
    curve = [*trials[3].curve, {"samples": 99, "step": 6, "value": float("nan")}]
    broken = trials[3].model_copy(update={"curve": curve, "value": float("inf")})
    edit(done, [*trials[:3], broken, *trials[4:]])
    page, _, document = report(done)
    assert document["trials"][3]["value"] is None
    assert document["trials"][3]["curve"][-1]["value"] is None
    assert "Leaderboard" in page.text


def test_the_page_can_be_read_without_eyes(done: Path) -> None:
    page, _, _ = report(done)
    count = [tag for tag, _ in page.tags].count
    assert count("h1") == count("main") == 1
    assert count("caption") == count("table")
    plots = [a for _, a in page.tags if a.get("class") == "plot"]
    assert len(plots) == 5
    assert all(plot["role"] == "img" and len(plot["aria-label"] or "") > 60 for plot in plots)


def test_building_twice_gives_the_same_bytes(done: Path) -> None:
    paths = [Path(path) for path in study.build(done).values()]
    first = [path.read_bytes() for path in paths]
    study.build(done)
    assert [path.read_bytes() for path in paths] == first
    assert not list(done.glob(".report*"))


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a study"):
        study.build(tmp_path)
    assert not list(tmp_path.iterdir())
