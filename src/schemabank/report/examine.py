"""What a report says: read, compared, and looked at as a sceptical reviewer would."""

from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.claims.judgements import beside, judge_claims
from schemabank.report.claims.statistics import Subject
from schemabank.report.comparing.comparison import compare
from schemabank.report.comparing.material import gather
from schemabank.report.contents import Report, TableFile, find_topics
from schemabank.report.reading.question import Question
from schemabank.report.reading.runs import RunSet
from schemabank.report.reading.table import ScoreTable, choose_arms
from schemabank.report.reading.tabulate import choose_contrast
from schemabank.report.sections import provenance
from schemabank.report.sections.verdict import Scoring
from schemabank.report.warnings.adapters import adapters_in_doubt
from schemabank.report.warnings.finding import by_weight
from schemabank.report.warnings.scores import find_warnings
from schemabank.report.warnings.training import Facts, find_run_warnings


def examine(path: Path, found: ScoreTable | RunSet, question: Question) -> Report:
    """Return everything that a report says of a folder of runs or a table of results.

    Args:
        path: the folder or the table.
        found: what was read of it.
        question: what is asked.

    Raises:
        InputError: the runs or the rows cannot be compared as asked.
    """
    if isinstance(found, RunSet):
        return _examine_runs(path, found, question)
    return _examine_table(path, found, question)


def _examine_table(path: Path, table: ScoreTable, question: Question) -> Report:
    treatment, control = choose_arms(table, question.treatment, question.control)
    comparison = compare(table, treatment, control, question.primary)
    warnings = find_warnings(table, comparison, question.test_size)
    claims = question.claims or beside(path)
    judged = judge_claims(claims, Subject(table, treatment, control)) if claims else []
    return Report(
        table=TableFile(table.name, table.sha256, len(table.rows)),
        comparison=comparison,
        warnings=by_weight(warnings, (treatment, control)),
        claims_file=claims.name if claims else None,
        claims=judged,
    )


def _examine_runs(path: Path, runs: RunSet, question: Question) -> Report:
    group = chosen_group(runs, question.group)
    arms = choose_contrast(runs, question.treatment, question.control)
    material = gather(path, runs, group, arms, question.primary)
    topics, samples = find_topics(material)
    known = Facts(material.settings, topics.rates, topics.behaviour, topics.cost)
    warnings = [
        *adapters_in_doubt(runs),
        *find_warnings(material.table, material.comparison, question.test_size),
        *find_run_warnings(runs, group, material.comparison, known),
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


def chosen_group(runs: RunSet, group: str | None) -> str:
    """Return the part of the split that runs are compared on: as asked, else the first.

    Raises:
        InputError: the runs do not share it.
    """
    groups = runs.groups
    if group is None and groups:
        return groups[0]
    if group not in groups:
        raise InputError(
            f"--group {group!r}: the runs share {', '.join(map(repr, groups)) or 'no group'}: name "
            "one of these"
        )
    return group
