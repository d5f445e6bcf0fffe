"""Figures and tables in the words of the pages of findings."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, linear_regression, median
from typing import Any, NamedTuple

from charts import RENAMED
from records import Suite, Tried, score_of
from words import percent, points, table

from schemabank.report.sections.cells import short
from schemabank.suites.raterule import Candidate, choose, paired_error

LORA = "lora"
ENSEMBLES = Path(__file__).parents[2] / "results" / "ensembles.json"


class Repeated(NamedTuple):
    """What was trained twice with equal settings and seeds, and the arm of the second time."""

    arm: str
    first: Candidate
    second: Candidate

    @property
    def difference(self) -> float:
        """The second accuracy less the first, a share."""
        return score_of(self.second) - score_of(self.first)


class AtRate(NamedTuple):
    """What an arm's seeds scored at a learning rate."""

    learning_rate: float
    correct: list[float]
    ended: list[float]
    losses: list[float]


def at(suite: Suite, arm: str, learning_rate: float) -> Candidate:
    """Return an arm of a suite's search at one of its learning rates."""
    return next(c for c in suite.search[arm] if c.learning_rate == learning_rate)


def chosen(suite: Suite, arm: str = LORA) -> Candidate:
    """Return an arm at the learning rate that a suite's search chose for it."""
    return choose(suite.search[arm])


def items(suite: Suite, arm: str = LORA) -> int:
    """Return how many items every run of a search answered."""
    return chosen(suite, arm).num_items


def ahead(suite: Suite, arm: str, than: str) -> str:
    """Return how far an arm's accuracy is ahead of another's, in points, with its error."""
    found, control = chosen(suite, arm), chosen(suite, than)
    return with_error(score_of(found) - score_of(control), paired_error(found, control))


def lowest(suite: Suite, arm: str) -> float:
    """Return the lowest loss of an arm of a suite's search, over its learning rates."""
    return min(tried.gold_nll for tried in suite.search[arm])


def losses(suite: Suite, arm: str, learning_rate: float) -> str:
    """Return the loss of every seed of an arm of a suite's search at a learning rate."""
    names = [
        run["run_id"]
        for run in suite.manifest["tuning"]["runs"]
        if (run["arm"], run["learning_rate"]) == (arm, learning_rate)
    ]
    found = [suite.figures(suite.results[name]) for name in names]
    return " and ".join(f"{own['gold_nll']:.2f}" for own in found)


def scales(suite: Suite) -> str:
    """Return which scales the runs of a suite chose, and how many chose each."""
    chosen = [
        rescaled["factor"]
        for result in suite.results.values()
        if (rescaled := result["training"].get("rescale")) is not None
    ]
    counts = {factor: chosen.count(factor) for factor in sorted(set(chosen))}
    if len(counts) == 1:
        return f"{chosen[0]:g} in all {len(chosen)} runs"
    return ", ".join(f"{factor:g} in {count} runs" for factor, count in counts.items())


def repeated(one: Suite, two: Suite) -> list[Repeated]:
    """Return what both rounds trained alike, and the second with a scale that came out as 1."""
    named = [(RENAMED.get(arm, arm), tried) for arm, tried in one.search.items()]
    named.append(("lora+ 16, scale chosen", two.search["lora+ 16"]))
    return [
        Repeated(arm, first, second)
        for arm, candidates in named
        for first in candidates
        for second in two.search.get(arm, ())
        if first.learning_rate == second.learning_rate
    ]


def repetitions(one: Suite, two: Suite) -> str:
    """Return the table of what was trained twice."""
    return table(
        {
            "arm": own.arm,
            "learning rate": short(own.first.learning_rate),
            "correct": f"{percent(score_of(own.first))}, {percent(score_of(own.second))}",
            "difference": with_error(own.difference, paired_error(own.second, own.first)),
            "loss": f"{own.first.gold_nll:.4f}, {own.second.gold_nll:.4f}",
        }
        for own in repeated(one, two)
    )


def most_repeated(one: Suite, two: Suite) -> float:
    """Return the largest difference between two trainings alike, in points."""
    return 100 * max(abs(own.difference) for own in repeated(one, two))


def most_repeated_loss(one: Suite, two: Suite) -> float:
    """Return the largest difference between the losses of two trainings alike."""
    return max(abs(own.first.gold_nll - own.second.gold_nll) for own in repeated(one, two))


def num_repeated(one: Suite, two: Suite) -> int:
    """Return how many pairs of trainings alike there are."""
    return len(repeated(one, two))


def most_ahead(suites: Sequence[Suite], control: Suite) -> float:
    """Return by how many standard errors the best arm's accuracy is ahead of LoRA's."""
    found = [one for suite in suites for one in suite.tried(chosen(control)) if one.error > 0]
    return max(one.difference / one.error for one in found if one.arm != "rank 64")


def typical_error(suites: Sequence[Suite]) -> float:
    """Return the median error of a difference from LoRA, in points, over searches."""
    errors = [one.error for suite in suites for one in suite.tried(chosen(suite)) if one.error > 0]
    return 100 * median(errors)


def slope(suites: Sequence[Suite], most_loss: float) -> float:
    """Return how many points of accuracy go with a loss that is lower by 0.01.

    Args:
        suites: whose searches' runs a line is fitted to.
        most_loss: runs with a higher loss of the gold target are left out.
    """
    figures = [suite.figures(result) for suite in suites for result in suite.results.values()]
    known = [own for own in figures if own["gold_nll"] < most_loss]
    found, correct = ([own[name] for own in known] for name in ("gold_nll", "correct"))
    return -linear_regression(found, correct).slope


def screening(suite: Suite, control: str = LORA, name: str = "LoRA") -> str:
    """Return the table of a search on validation, the lowest loss first.

    Args:
        suite: with the search.
        control: arm that all are compared with.
        name: how the table calls it.
    """
    rows = [(lowest(suite, own.arm), own) for own in suite.tried(chosen(suite, control))]
    ordered = sorted(rows, key=lambda row: row[0])
    return table({"arm": own.arm, **tried_cells(own, loss, name)} for loss, own in ordered)


def piloted(suite: Suite) -> str:
    """Return the table of a search over a grid: every arm at its most accurate rate of each."""
    rows = [
        {
            "examples": f"{setting:,}",
            "arm": arm,
            "learning rate": short(best.learning_rate),
            "correct": percent(fmean(best.correct)),
            "each seed": ", ".join(f"{100 * share:.1f}" for share in best.correct),
            "ended": f"{100 * fmean(best.ended):.0f} %",
            "loss": f"{fmean(best.losses):.3f}",
        }
        for (setting, arm), found in tried_by_setting(suite).items()
        for best in (max(found, key=lambda at: fmean(at.correct)),)
    ]
    return table(rows)


def most_correct(suite: Suite, setting: int, arm: str) -> float:
    """Return an arm's accuracy at its most accurate rate of a search, the mean over seeds."""
    return max(fmean(at.correct) for at in tried_by_setting(suite)[setting, arm])


def tried_by_setting(suite: Suite) -> dict[tuple[int, str], list[AtRate]]:
    """Return what the arms of a search over a grid scored at each rate, by setting and arm."""
    found: dict[tuple[int, str], dict[float, AtRate]] = {}
    for run in suite.manifest["tuning"]["runs"]:
        (setting,) = run["settings"].values()
        rates = found.setdefault((setting, run["arm"]), {})
        at = rates.setdefault(run["learning_rate"], AtRate(run["learning_rate"], [], [], []))
        figures = suite.figures(suite.results[run["run_id"]])
        at.correct.append(figures["correct"])
        at.ended.append(figures["ended_ratio"])
        at.losses.append(figures["gold_nll"])
    return {place: [*rates.values()] for place, rates in sorted(found.items())}


def ensembles() -> str:
    """Return the table of what runs that differ in their seeds alone are together."""
    return table(
        {
            "learning rate": short(row["learning_rate"]),
            "runs": str(len(row["seeds"])),
            "one run": f"{fmean(row['losses']):.3f}",
            "mean prediction": f"{row['mean_prediction']:.3f}",
            "mean update, of all their ranks": f"{row['mean_update']:.3f}",
            "nearest update of one's rank": f"{row['reduced']:.3f}",
        }
        for row in json.loads(ENSEMBLES.read_text(encoding="utf-8"))
    )


def costs(suites: Mapping[str, Suite]) -> str:
    """Return the table of what every suite took."""
    return table(
        {
            "record": f"`{suite.name}`",
            "runs": _runs(suite),
            "wall clock": f"{60 * suite.hours:.0f} min",
            "device": suite.devices,
            "software": suite.versions,
        }
        for suite in suites.values()
    )


def _runs(suite: Suite) -> str:
    taught = f" and {len(suite.teachers)} teachers" if suite.teachers else ""
    return f"{len(suite.results)}{taught}"


def tried_cells(tried: Tried, lowest_loss: float, control: str = "LoRA") -> dict[str, str]:
    """Return what a table says of an arm at its chosen rate."""
    found = tried.found
    return {
        "learning rate": short(found.learning_rate) + (" (edge)" if tried.at_edge else ""),
        "correct": percent(score_of(found)),
        f"less {control}": with_error(tried.difference, tried.error),
        "loss": f"{found.gold_nll:.4f}",
        "lowest loss": f"{lowest_loss:.4f}",
    }


def with_error(difference: float, error: float) -> str:
    """Return a difference of shares in percentage points, with its error."""
    return f"{points(difference)} ± {100 * error:.1f}"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(percent, points, at, chosen, score_of, ahead, items, lowest, losses, scales),
        *(repetitions, most_repeated, most_repeated_loss, num_repeated),
        *(most_ahead, typical_error, slope, screening, ensembles, costs, short, piloted),
        *(most_correct,),
    )
}
