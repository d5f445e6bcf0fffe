"""What a report says: read, compared, and looked at as a sceptical reviewer would."""

from dataclasses import replace
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.claims.judgements import beside, judge_claims
from schemabank.report.claims.statistics import Subject
from schemabank.report.comparing.comparison import compare
from schemabank.report.comparing.judging import judged_by
from schemabank.report.comparing.margins import Margin, stated_margin
from schemabank.report.comparing.material import gather
from schemabank.report.contents import Report, TableFile, find_topics
from schemabank.report.itemreport import examine_items
from schemabank.report.reading.itemresults import ItemResults
from schemabank.report.reading.question import Found, Question
from schemabank.report.reading.runs import RunSet
from schemabank.report.reading.table import ScoreTable, choose_arms
from schemabank.report.reading.tabulate import choose_contrast
from schemabank.report.sections import provenance
from schemabank.report.sections.verdict import Scoring
from schemabank.report.warnings.adapters import adapters_in_doubt
from schemabank.report.warnings.declared import undeclared_margin, undeclared_part
from schemabank.report.warnings.evaluations import find_cluster_warnings, without_items
from schemabank.report.warnings.finding import by_weight
from schemabank.report.warnings.scores import find_warnings
from schemabank.report.warnings.training import Facts, find_run_warnings

IN_SUITE = "declared in the suite"


def examine(path: Path | None, found: Found, question: Question) -> Report:
    """Return everything that a report says of runs, a table, or other tools' results.

    Args:
        path: the folder or the table; ``None`` where arms have places of their own.
        found: what was read of it.
        question: what is asked.

    Raises:
        InputError: they cannot be compared as asked.
    """
    if isinstance(found, RunSet):
        assert path is not None
        return _examine_runs(path, found, question)
    if isinstance(found, ItemResults):
        margin, arms = stated_margin(question.margin), (question.treatment, question.control)
        size = question.test_size
        return examine_items(found, arms, question.primary, margin=margin, test_size=size)
    return _examine_table(path, found, question)


def _examine_table(path: Path | None, table: ScoreTable, question: Question) -> Report:
    claims = question.claims or (None if path is None else beside(path))
    treatment, control = choose_arms(table, question.treatment, question.control)
    comparison = compare(table, treatment, control, question.primary)
    comparison = judged_by(stated_margin(question.margin), comparison)
    warnings = [
        *find_warnings(table, comparison, question.test_size),
        *without_items(table),
    ]
    judged = judge_claims(claims, Subject(table, treatment, control)) if claims else []
    return Report(
        table=TableFile(table.name, table.sha256, len(table.rows)),
        comparison=comparison,
        warnings=by_weight(warnings, (treatment, control)),
        claims_file=claims.name if claims else None,
        claims=judged,
    )


def _examine_runs(path: Path, runs: RunSet, question: Question) -> Report:
    arms = choose_contrast(runs, question.treatment, question.control)
    group = chosen_group(runs, arms, question.group)
    setting = chosen_setting(runs, arms, question.primary)
    material = gather(path, runs, group, arms, setting)
    comparison = material.comparison
    if setting is not None and question.primary is None:
        primary = replace(comparison.primary, chosen_by=IN_SUITE)
        comparison = replace(comparison, primary=primary)
    margin = stated_margin(question.margin) or declared_margin(runs, arms)
    material = replace(material, comparison=judged_by(margin, comparison))
    topics, samples = find_topics(material)
    known = Facts(material.settings, topics.rates, topics.behaviour, topics.cost)
    warnings = [
        *adapters_in_doubt(runs),
        *find_warnings(material.table, material.comparison, question.test_size),
        *find_run_warnings(runs, group, material.comparison, known),
        *find_cluster_warnings(material),
        *undeclared_margin(runs, material.comparison),
        *undeclared_part(runs, arms, question),
    ]
    return Report(
        table=TableFile(material.table.name, material.table.sha256, len(runs.runs)),
        comparison=material.comparison,
        warnings=by_weight(warnings, arms),
        scored=Scoring(runs.score, runs.split, group),
        topics=topics,
        provenance=provenance.find(runs),
        samples=samples,
    )


def declared_margin(runs: RunSet, arms: tuple[str, str]) -> Margin | None:
    """Return the margin that a suite declared for this contrast."""
    if runs.margin is None or not runs.has_declared(arms):
        return None
    return Margin(runs.margin, IN_SUITE)


def chosen_group(runs: RunSet, arms: tuple[str, str], group: str | None) -> str:
    """Return the part of the split that arms are compared on.

    It is as asked, or as declared for these arms, or the first.

    Raises:
        InputError: the runs do not share it.
    """
    groups = runs.groups
    found = group or (runs.group if runs.has_declared(arms) else None)
    if found is None and groups:
        return groups[0]
    if found not in groups:
        named = f"--group {group!r}" if group else f"contrast.group {found!r} of the suite"
        raise InputError(
            f"{named}: the runs share {', '.join(map(repr, groups)) or 'no group'}: name one of "
            "these with --group"
        )
    return found


def chosen_setting(runs: RunSet, arms: tuple[str, str], setting: str | None) -> str | None:
    """Return the setting that the verdict rests on: as asked, as declared for these arms, or none.

    None stands for the mean over all settings.

    Raises:
        InputError: no run is finished at the declared one.
    """
    found = runs.setting if runs.has_declared(arms) else None
    if setting is not None or found is None:
        return setting
    for arm in arms:
        if arm in runs.arms(trained=True) and (arm, found) not in runs.by_place():
            raise InputError(
                f"contrast.setting {found!r} of the suite has no finished run of {arm!r} yet: wait "
                "for one, or name another setting with --primary"
            )
    return found
