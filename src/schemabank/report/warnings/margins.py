"""A warning about a margin that the runs did not declare."""

from collections.abc import Iterator

from schemabank.report.comparing.comparison import Comparison
from schemabank.report.reading.runs import RunSet
from schemabank.report.warnings.finding import Finding


def undeclared_margin(runs: RunSet, comparison: Comparison) -> Iterator[Finding]:
    """Find a margin that was not declared before the runs, with the contrast."""
    judged = comparison.primary.margin
    if judged is None:
        return
    points = 100 * judged.verdict.margin
    is_declared = runs.contrast == (comparison.treatment, comparison.control)
    declared = runs.margin if is_declared else None
    if declared is None or abs(declared - points) > declared / 10**9:
        before = "none was" if declared is None else f"{declared:g} points were"
        yield Finding(
            "margin-not-declared",
            {"declared": declared, "margin": points},
            f"A margin of {points:g} points was asked for, but {before} declared before the runs: "
            "it may have been chosen by the scores.",
        )
