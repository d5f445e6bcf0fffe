"""What other figures say of a difference in scores: form alone, or a loss that disagrees.

Like :mod:`schemabank.report.warnings.scores`, a finding says what the runs show and no more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from schemabank import stats
from schemabank.report.comparing.comparison import Comparison
from schemabank.report.reading.runs import RunSet
from schemabank.report.warnings.finding import Finding
from schemabank.tasks.scoring.scores import METRICS


def find_figure_warnings(
    runs: RunSet, group: str, comparison: Comparison, settings: Sequence[str]
) -> Iterator[Finding]:
    """Find what figures of both arms say of the difference in their scores.

    Args:
        runs: that are compared.
        group: of items.
        comparison: of their scores.
        settings: that the primary contrast is over.
    """
    yield from _form_alone(runs, group, comparison, settings)
    yield from _loss_disagrees(runs, group, comparison, settings)


def _form_alone(
    runs: RunSet, group: str, comparison: Comparison, settings: Sequence[str]
) -> Iterator[Finding]:
    """A difference that is not there among completions that ended, or that could be read.

    Scores among such completions say whether the arms answer differently, or only in another form.
    """
    for words_for, share_of in (
        ("ended by themselves", _among_ended),
        ("held an answer", _among_read),
    ):
        difference = _difference_in(share_of, runs, group, comparison, settings)
        if difference is not None and not _is_told_from_0(difference):
            yield Finding(
                "format-explains-difference",
                {"among": words_for, "difference": difference},
                f"Among completions that {words_for} the difference is "
                f"{100 * difference.mean:+.3g} points "
                f"({_ends_in_words(difference.interval, factor=100)}), which cannot be told from "
                "0: form alone may explain it.",
            )


def _loss_disagrees(
    runs: RunSet, group: str, comparison: Comparison, settings: Sequence[str]
) -> Iterator[Finding]:
    """A better score with a higher loss of the gold target, or a worse one with a lower.

    Whoever learned more of a task gives its solutions a higher probability, whatever the form of
    the answers.
    """
    found = _difference_in(_gold_loss, runs, group, comparison, settings)
    if found is None or not METRICS[runs.runs[0].result["metric"]].decodes:
        return
    outcome = comparison.primary.verdict.outcome
    if _is_told_from_0(found) and (outcome == "better") == (found.mean > 0):
        yield Finding(
            "loss-disagrees",
            {"difference": found},
            f"{comparison.treatment} scores {outcome} than {comparison.control}, but its loss of "
            f"the gold target is {'higher' if found.mean > 0 else 'lower'}, by {found.mean:+.3g} "
            f"nats per token ({_ends_in_words(found.interval)}): the score may come from the form "
            "of the answers.",
        )


def _difference_in(
    of: Callable[[Mapping[str, Any], str], float | None],
    runs: RunSet,
    group: str,
    comparison: Comparison,
    settings: Sequence[str],
) -> stats.PairedDifference | None:
    """The arms' difference in another figure than the score, by which one of them is better.

    Returns:
        ``None`` if neither is better, or if the figure is known at fewer than two seeds.
    """
    if comparison.primary.verdict.outcome not in {"better", "worse"}:
        return None
    means = _means_by_seed(runs, group, comparison, settings, of)
    if len(means) < 2:
        return None
    return stats.paired_difference([a for a, _ in means], [b for _, b in means])


def _is_told_from_0(difference: stats.PairedDifference) -> bool:
    ends = difference.interval
    return ends is not None and not ends[0] <= 0 <= ends[1]


def _gold_loss(summary: Mapping[str, Any], _: str) -> float | None:
    value = summary.get("gold_nll")
    return None if value is None else float(value)


def _among_ended(summary: Mapping[str, Any], score: str) -> float | None:
    value = summary.get(f"{score}_among_ended")
    return None if value is None else float(value)


def _among_read(summary: Mapping[str, Any], score: str) -> float | None:
    read = 1 - summary["unparsable_ratio"] if "unparsable_ratio" in summary else 0.0
    return summary[score] / read if read > 0 else None


def _means_by_seed(
    runs: RunSet,
    group: str,
    comparison: Comparison,
    settings: Sequence[str],
    of: Callable[[Mapping[str, Any], str], float | None],
) -> list[tuple[float, float]]:
    """Both arms' figures, such as scores among some completions, means over settings, by seed."""
    found: dict[str, dict[tuple[int, str], float]] = {}
    fixed: float | None = None
    for run in runs.runs:
        value = of(run.result["groups"][group], runs.score)
        if value is not None and run.trained:
            found.setdefault(run.arm, {})[run.seed, run.setting] = value
        elif run.arm == comparison.control:
            fixed = value
    first, second = found.get(comparison.treatment, {}), found.get(comparison.control, {})
    means = []
    for seed in dict.fromkeys(seed for seed, _ in first):
        own = [first.get((seed, name)) for name in settings]
        other = [second.get((seed, name), fixed) for name in settings]
        if None not in own and None not in other:
            means.append((_mean_of_known(own), _mean_of_known(other)))
    return means


def _mean_of_known(values: Sequence[float | None]) -> float:
    return fmean(value for value in values if value is not None)


def _ends_in_words(ends: stats.Interval | None, *, factor: float = 1) -> str:
    if ends is None:
        return "no interval"
    return f"95 % interval {factor * ends[0]:.3g} to {factor * ends[1]:.3g}"
