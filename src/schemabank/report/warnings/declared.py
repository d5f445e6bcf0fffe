"""Warnings about what a report was asked and the runs did not declare: a margin, a part."""

from collections.abc import Iterator

from schemabank.report.comparing.comparison import Comparison
from schemabank.report.reading.question import Question
from schemabank.report.reading.runs import RunSet
from schemabank.report.warnings.finding import Finding


def undeclared_margin(runs: RunSet, comparison: Comparison) -> Iterator[Finding]:
    """Find a margin that was not declared before the runs, with the contrast."""
    judged = comparison.primary.margin
    if judged is None:
        return
    points = 100 * judged.verdict.margin
    is_declared = runs.has_declared((comparison.treatment, comparison.control))
    declared = runs.margin if is_declared else None
    if declared is None or abs(declared - points) > declared / 10**9:
        before = "none was" if declared is None else f"{declared:g} points were"
        yield Finding(
            "margin-not-declared",
            {"declared": declared, "margin": points},
            f"A margin of {points:g} points was asked for, but {before} declared before the runs: "
            "it may have been chosen by the scores.",
        )


def undeclared_part(runs: RunSet, arms: tuple[str, str], question: Question) -> Iterator[Finding]:
    """Find a group of items, or a setting, that was asked for and is not the declared one."""
    is_declared, groups = runs.has_declared(arms), runs.groups
    group, setting = (runs.group, runs.setting) if is_declared else (None, None)
    usual = group or (groups[0] if groups else None)
    if question.group is not None and question.group != usual:
        yield Finding(
            "group-not-declared",
            {"declared": group, "group": question.group},
            f"The part {question.group!r} was asked for, but {_before(group, 'the first counts')}: "
            "it may have been chosen by the scores.",
        )
    if question.primary is not None and question.primary != setting:
        yield Finding(
            "setting-not-declared",
            {"declared": setting, "setting": question.primary},
            f"The setting {question.primary!r} was asked for, but "
            f"{_before(setting, 'the mean over all settings counts')}: it may have been chosen by "
            "the scores.",
        )


def _before(declared: str | None, usual: str) -> str:
    if declared is None:
        return f"none was declared for these arms before the runs, so that {usual}"
    return f"{declared!r} was declared before the runs"
