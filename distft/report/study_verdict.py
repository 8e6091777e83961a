"""What a study came to, in a few sentences and the numbers behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distft.report import study_document as told
from distft.report.show import Document, number, percent, size
from distft.report.verdict import judge


def judged(content: Document) -> dict[str, Any]:
    """Return the verdict on a study.

    Args:
        content: The report's document, without its verdict.

    Returns:
        `sentence`, `price` (what the recommended configuration costs, and the best one beside it;
        empty where none is recommended), and where the winner was measured what `verdict.judge`
        says of its run.
    """
    study, run = content["study"], content["run"]
    verdict = judge(run, {}, 0, 0) if run else {}
    sentences = [*_state(content), *_recommended(content)]
    if run:
        sentences.append(str(verdict["sentence"]))
    elif study["recommended"] is not None:
        sentences.append("It has not been trained at full budget and measured on test rows yet.")
    return {**verdict, "sentence": " ".join(sentences), "price": " ".join(_price(content))}


def _state(content: Document) -> Iterator[str]:
    study = content["study"]
    trials = [trial for _, trial in told.of_study(content, "search")]
    finished = sum(trial["state"] in ("complete", "pruned") for trial in trials)
    of = f" of {study['limits']['trials']:,.0f}" if study["limits"].get("trials") else ""
    after = f"after {finished}{of} trials" if finished else "before a trial had finished"
    confirming = study["candidates"] or any(told.of_study(content, "confirm"))
    if study["status"] == "running" and confirming:
        if study["recommended"] is None:
            yield "The search has ended; its best configurations are being confirmed."
    elif study["status"] == "running" and study["recommended"] is None:
        yield f"The search is running: {finished}{of} trials have finished."
    elif study["status"] == "interrupted":
        yield f"The study was interrupted {after}; the same command continues it."
    elif study["status"] == "failed":
        message = str((study["error"] or {}).get("message") or "").strip()
        first_line = message.splitlines()[0].rstrip(".") if message else ""
        yield f"The study failed {after}" + (f": {first_line}." if first_line else ".")
    if study["recommended"] is None:
        yield from _best_so_far(content, trials)


def _best_so_far(content: Document, trials: list[told.Trial]) -> Iterator[str]:
    best = told.numbered(content, content["study"]["best_trial"])
    if best is not None and best[1]["value"] is not None:
        word = "Best so far" if content["study"]["status"] == "running" else "The best"
        yield (
            f"{word} is trial {best[1]['number']}, {told.described(best[1])}: "
            f"{told.goal(content)} {_value(content, best[1]['value'])}."
        )
    elif trials and all(trial["state"] == "refused" for trial in trials):
        count = "The only trial was" if len(trials) == 1 else f"All {len(trials)} trials were"
        yield f"{count} refused before launch: {trials[0]['reason'].rstrip('.') or 'no reason'}."
    elif content["study"]["status"] == "completed":
        yield f"The study completed, but no trial came to a value; {len(trials)} were tried."


def _recommended(content: Document) -> Iterator[str]:
    found = told.numbered(content, content["study"]["recommended"])
    if found is None:
        return
    trial = found[1]
    yield f"Recommended: {told.described(trial)} (trial {trial['number']})."


def _price(content: Document) -> Iterator[str]:
    chosen = told.numbered(content, content["study"]["recommended"])
    if chosen is None:
        return
    yield f"It {_cost(chosen[1], in_full=True)}."
    best = _best(content)
    if best is None or best["number"] == chosen[1]["number"]:
        yield from _sole_best(content)
    else:
        yield from _beside(content, chosen[1], best)


def _best(content: Document) -> told.Trial | None:
    """Return the trial with the best mean among those confirmed, else the best of the search."""
    confirmed = [one for one in content["study"]["candidates"] if one["mean"] is not None]
    sign = 1 if told.lower_wins(content["study"]) else -1
    if confirmed:
        found = told.numbered(content, min(confirmed, key=lambda one: sign * one["mean"])["trial"])
    else:
        found = told.numbered(content, content["study"]["best_trial"])
    return found[1] if found else None


def _cost(trial: told.Trial, in_full: bool) -> str:
    said = []
    run = trial["run"]
    if run:
        share = run["model"]["trainable_params"] / max(1, run["model"]["params"])
        said.append(f"trains {percent(share)} of the parameters")
        if run["peak_memory_bytes"].get("planned"):
            said.append(f"needs {size(run['peak_memory_bytes']['planned'])} a worker by plan")
    if trial["saved_bytes"]:
        said.append(f"is {size(trial['saved_bytes'])} on disk")
    if not in_full:
        said = [one.removesuffix(" of the parameters") for one in said]
    if not said:
        return "was not planned"
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def _sole_best(content: Document) -> Iterator[str]:
    found = told.candidate(content, content["study"]["recommended"])
    if found and found[1]["mean"] is not None and len(content["study"]["candidates"]) > 1:
        yield (
            f"It is also the best of those confirmed: mean {told.goal(content)} "
            f"{_value(content, found[1]['mean'])} over {_seeds(found[1])}."
        )
    else:
        yield "It is also the best of the search."


def _beside(content: Document, chosen: told.Trial, best: told.Trial) -> Iterator[str]:
    ours = told.candidate(content, chosen["number"])
    theirs = told.candidate(content, best["number"])
    goal, cost = told.goal(content), _cost(best, in_full=False)
    who = f"trial {best['number']} ({told.described(best)})"
    if not ours or not theirs or ours[1]["mean"] is None or theirs[1]["mean"] is None:
        yield f"The best {goal} is that of {who}, which {cost}."
        return
    gap = abs(ours[1]["mean"] - theirs[1]["mean"])
    tolerance = content["study"]["tolerance"]
    within = f", within the tolerance of {number(tolerance)}" if tolerance is not None else ""
    yield (
        f"The best mean {goal} over {_seeds(theirs[1])}, that of {who}, is better by "
        f"{_value(content, gap)}{within}; that one {cost}."
    )


def _seeds(candidate: dict[str, Any]) -> str:
    count = len(candidate["values"])
    return f"{count} seed{'s' if count != 1 else ''}"


def _value(content: Document, value: float) -> str:
    return told.how((content["study"]["objective"] or [""])[0])(value)
