"""The primary contrast judged by a margin."""

from dataclasses import replace

from schemabank import stats
from schemabank.report.comparing.comparison import Comparison
from schemabank.report.comparing.margins import Margin, MarginJudged


def judged_by(margin: Margin | None, comparison: Comparison) -> Comparison:
    """Return the comparison with what its primary contrast says about a margin, if there is one."""
    if margin is None:
        return comparison
    difference = comparison.primary_contrast.own.difference
    found = MarginJudged(margin.declared_by, stats.margin_verdict(difference, margin.points / 100))
    return replace(comparison, primary=replace(comparison.primary, margin=found))
