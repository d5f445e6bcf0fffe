"""A suite's tables on the terminal: its arms, the rates that were tried, and its results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.tables import PlainTable
from schemabank.config.file import run_id
from schemabank.runs.folder import is_finished
from schemabank.runs.members import Outcome
from schemabank.stats import summarise_arm
from schemabank.suites.file import Suite, SuiteRun
from schemabank.suites.ratesearch import ChosenRate

# The square of a larger score may be too large for a float, so that it has no spread. A perplexity
# may be as large, and even infinite.
LARGEST_SPREAD = 1e150


def arms_table(what: str, runs: Sequence[SuiteRun], out: Path) -> PlainTable:
    """How many runs, seeds and finished runs each arm has."""
    rows = []
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        seeds = len({run.seed for run in own})
        finished = sum(_has_finished(out / run_id(run.config)) for run in own)
        rows.append([arm, str(len(own)), str(seeds), str(finished)])
    return f"{len(runs)} {what} in {str(out)!r}", ["arm", "runs", "seeds", "finished"], rows


def tuning_tables(choices: Sequence[ChosenRate]) -> list[PlainTable]:
    """Score against learning rate, a row an arm, point and factor; none where nothing trains."""
    if not choices:
        return []
    names = list(choices[0].run.point)
    rows = []
    for choice in choices:
        for factor in choice.factors:
            place = [choice.run.arm, *(str(choice.run.point[name]) for name in names)]
            rows.append([*place, f"{factor:g}", *_candidate_cells(choice, factor)])
    head = ["arm", *names, "factor", "learning rate", "score", "gold NLL", "ended", "choice"]
    return [("learning rates on validation, means over seeds", head, rows)]


def result_tables(suite: Suite, outcomes: Sequence[Outcome]) -> list[PlainTable]:
    """Mean and spread over seeds of the first score, one table a group of items."""
    results = [outcome.result for outcome in outcomes]
    groups = dict.fromkeys(g for r in results if r is not None for g in _groups_of(r))
    return [_result_table(suite, results, group) for group in groups]


def _has_finished(folder: Path) -> bool:
    """Whether a run has finished; what else stands under its name is refused elsewhere."""
    try:
        return is_finished(folder)
    except InputError:
        return False


def _candidate_cells(choice: ChosenRate, factor: float) -> list[str]:
    """A learning rate and its results."""
    found = choice.candidates.get(factor)
    if found is None:
        return ["", "", "", "", "diverged"]
    chosen = "chosen, at the edge" if choice.at_edge else "chosen"
    marks = [chosen] if factor == choice.factor else []
    marks += ["best score"] if factor == choice.best_score else []
    return [
        f"{found.learning_rate:g}",
        "" if found.score is None else f"{found.score:.4f}",
        f"{found.gold_nll:.4f}",
        "" if found.ended is None else f"{found.ended:.0%}",
        ", ".join(marks),
    ]


def _result_table(
    suite: Suite, results: Sequence[Mapping[str, Any] | None], group: str
) -> PlainTable:
    names = list(dict.fromkeys(name for run in suite.runs for name in run.point))
    scores, metric = dict[tuple[str, ...], list[float]](), ""
    for run, result in zip(suite.runs, results, strict=True):
        key = (run.arm, *(str(run.point.get(name, "")) for name in names))
        scores.setdefault(key, [])
        if result is not None and group in _groups_of(result) and result["scores"]:
            metric = result["scores"][0]
            scores[key].append(_groups_of(result)[group][metric])
    rows = [[*key, str(len(found)), *_summary_cells(found)] for key, found in scores.items()]
    return f"{metric}, {group}", ["arm", *names, "seeds", "mean", "sd", "95 % over seeds"], rows


def _summary_cells(scores: Sequence[float]) -> list[str]:
    if not scores:
        return ["", "", ""]
    if not all(score <= LARGEST_SPREAD for score in scores):
        return [f"{sum(score / len(scores) for score in scores):.4g}", "", ""]
    found = summarise_arm(scores)
    sd = "" if found.sd is None else f"{found.sd:.4f}"
    ends = "" if found.interval is None else f"{found.interval[0]:.4f} to {found.interval[1]:.4f}"
    return [f"{found.mean:.4f}", sd, ends]


def _groups_of(result: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    return dict(result["groups"])
