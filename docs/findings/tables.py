"""Figures and tables in the words of the pages of findings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import linear_regression, median
from typing import Any

from charts import SAME
from records import Suite, Tried

from schemabank import stats
from schemabank.common.tables import markdown_table
from schemabank.report.comparing.families import Adjusted
from schemabank.report.sections.cells import short
from schemabank.stats import Interval
from schemabank.suites.raterule import Candidate, choose, paired_error

MINUS = "−"


def percent(share: float) -> str:
    """Return a share as percent with one decimal."""
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """Return a difference of shares in points of percent, with its sign."""
    return f"{100 * share:+.1f}".replace("-", MINUS)


def interval(ends: Interval) -> str:
    """Return both ends of an interval of differences, in points of percent."""
    return f"{points(ends[0])} to {points(ends[1])}"


def effect(found: stats.Verdict | Adjusted) -> str:
    """Return a difference with its 95 % interval, in points."""
    assert found.interval is not None
    return f"{points(found.difference)} points (95 % interval {interval(found.interval)})"


def screening(suites: Sequence[Suite], control: Suite) -> str:
    """Return the table of a round of candidates on validation, those with the lowest loss first.

    Args:
        suites: that the round consists of.
        control: the suite whose arm ``lora`` all are compared with.
    """
    rows = [
        (lowest(suite, tried.arm), tried)
        for suite in suites
        for tried in suite.tried(lora(control))
    ]
    return _table(_tried_row(tried, loss) for loss, tried in sorted(rows, key=lambda row: row[0]))


def at(suite: Suite, arm: str, learning_rate: float) -> Candidate:
    """Return an arm of a suite's search at one of its learning rates."""
    return next(c for c in suite.search[arm] if c.learning_rate == learning_rate)


def lora(suite: Suite) -> Candidate:
    """Return LoRA at the learning rate that a suite's search chose for it."""
    return choose(suite.search["lora"])


def items(suite: Suite) -> int:
    """Return how many items every run of a search answered."""
    return lora(suite).num_items


def lowest(suite: Suite, arm: str) -> float:
    """Return the lowest loss of an arm of a suite's search, over its learning rates."""
    return min(tried.gold_nll for tried in suite.search[arm])


def num_candidates(*suites: Suite) -> int:
    """Return how many arms of searches are others than plain LoRA, equal ones counted once."""
    names = {arm for suite in suites for arm in suite.search}
    return len({SAME.get(name, name) for name in names} - {"lora"})


def repeated(one: Suite, two: Suite) -> list[tuple[str, Candidate, Candidate]]:
    """Return arms of two rounds that were trained twice alike, with their rate in their names."""
    names = {arm: (two, other) for arm, other in SAME.items() if other in two.search}
    names["lora, averaged"] = (two, "lora, averaged")
    pairs = [
        (own, other)
        for arm, (suite, name) in names.items()
        for own in one.search.get(arm, ())
        for other in suite.search[name]
    ]
    scaled = two.search["lora+ 16, scale chosen"]
    pairs += [(own, other) for own in two.search["lora+ 16"] for other in scaled]
    found = [(own, other) for own, other in pairs if own.learning_rate == other.learning_rate]
    by_id = {id(c): arm for s in (one, two) for arm, tried in s.search.items() for c in tried}
    return [(by_id[id(other)], own, other) for own, other in found]


def repetitions(one: Suite, two: Suite) -> str:
    """Return the table of what was trained twice."""
    return _table(
        {
            "arm": arm,
            "learning rate": short(own.learning_rate),
            "correct": f"{percent(own.score or 0)}, {percent(other.score or 0)}",
            "difference": f"{_points_apart(own, other)} ± {100 * paired_error(other, own):.1f}",
            "loss": f"{own.gold_nll:.4f}, {other.gold_nll:.4f}",
        }
        for arm, own, other in repeated(one, two)
    )


def most_repeated(one: Suite, two: Suite) -> float:
    """Return the largest difference between two trainings alike, in points."""
    return 100 * max(abs((a.score or 0) - (b.score or 0)) for _, a, b in repeated(one, two))


def most_repeated_loss(one: Suite, two: Suite) -> float:
    """Return the largest difference between the losses of two trainings alike."""
    return max(abs(a.gold_nll - b.gold_nll) for _, a, b in repeated(one, two))


def num_ties(suite: Suite, gap: float = 0.0013) -> int:
    """Return how many arms of a search have a lowest loss this close to another's."""
    losses = sorted(lowest(suite, arm) for arm in suite.search)
    close = [b - a <= gap for a, b in pairwise(losses)]
    return sum(any(close[max(0, n - 1) : n + 1]) for n in range(len(losses)))


def _points_apart(own: Candidate, other: Candidate) -> str:
    return points((other.score or 0) - (own.score or 0))


def typical_error(suites: Sequence[Suite]) -> float:
    """Return the median error of a difference from LoRA, in points, over searches."""
    errors = [one.error for suite in suites for one in suite.tried(lora(suite)) if one.error > 0]
    return 100 * median(errors)


def slope(suites: Sequence[Suite], most_loss: float) -> float:
    """Return how many points of accuracy go with a loss that is lower by 0.01.

    Args:
        suites: whose searches' runs a line is fitted to.
        most_loss: runs with a higher loss of the gold target are left out.
    """
    groups = [result["groups"]["all"] for suite in suites for result in suite.results.values()]
    known = [own for own in groups if own["gold_nll"] < most_loss]
    losses, correct = ([own[name] for own in known] for name in ("gold_nll", "correct"))
    return -linear_regression(losses, correct).slope


def scores(suite: Suite) -> str:
    """Return the table of all arms of a suite, at each of its settings."""
    comparison = suite.report.comparison
    rows = [
        {
            "arm": at.arm,
            "setting": at.setting or "mean over all",
            "seeds": str(at.summary.num_seeds),
            "correct": percent(at.summary.mean),
            "of single runs": _range(at.scores.values()),
        }
        for at in comparison.arms
        if at.setting is not None or len(comparison.contrasts) > 1
    ]
    references = [
        {
            "arm": own.arm,
            "setting": own.setting,
            "seeds": "",
            "correct": percent(own.score),
            "of single runs": "",
        }
        for own in comparison.references
    ]
    return _table([*references, *rows])


def contrasts(suite: Suite) -> str:
    """Return the table of the treatment against the control at every setting, and pooled."""
    comparison = suite.report.comparison
    return _table(
        {
            "setting": contrast.setting or "mean over all",
            "difference": points(contrast.verdict.difference),
            "95 % interval": "" if (ends := contrast.verdict.interval) is None else interval(ends),
            "p": short(contrast.verdict.p),
            "verdict": contrast.verdict.outcome,
        }
        for contrast in comparison.every_contrast
    )


def others(suite: Suite) -> str:
    """Return the table of the treatment against every other trained arm."""
    return _table(
        {
            "against": own.arm,
            "its mean": percent(own.mean),
            "difference": points(own.judged.difference),
            "95 % interval": "" if (ends := own.judged.interval) is None else interval(ends),
            "Holm's p": short(own.judged.p_holm),
            "verdict": own.judged.outcome,
        }
        for own in suite.report.topics.others
    )


def costs(suites: Mapping[str, Suite]) -> str:
    """Return the table of what every suite took."""
    return _table(
        {
            "record": f"`{suite.name}`",
            "runs": str(len(suite.results)),
            "wall clock": f"{60 * suite.hours:.0f} min",
            "device": suite.devices,
            "software": suite.versions,
        }
        for suite in suites.values()
    )


def _tried_row(tried: Tried, lowest_loss: float) -> dict[str, str]:
    found = tried.found
    assert found.score is not None
    return {
        "arm": tried.arm,
        "learning rate": short(found.learning_rate) + (" (edge)" if tried.at_edge else ""),
        "correct": percent(found.score),
        "less LoRA": f"{points(tried.difference)} ± {100 * tried.error:.1f}",
        "loss": f"{found.gold_nll:.4f}",
        "lowest loss": f"{lowest_loss:.4f}",
    }


def _range(values: Iterable[float]) -> str:
    known = sorted(values)
    return f"{100 * known[0]:.1f} to {100 * known[-1]:.1f} %"


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    found: Sequence[Mapping[str, str]] = list(rows)
    cells = [list(row.values()) for row in found]
    return "\n".join(markdown_table(list(found[0]), cells))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(percent, points, interval, effect, at, lora, items, lowest, num_candidates),
        *(repetitions, most_repeated, most_repeated_loss, num_ties),
        *(typical_error, slope),
        *(screening, scores, contrasts, others, costs),
    )
}
