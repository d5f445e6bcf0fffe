"""What a report says: read, compared, and looked at as a sceptical reviewer would."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.claims.judgements import beside, judge_claims
from schemabank.report.claims.statistics import Subject
from schemabank.report.comparing.comparison import compare
from schemabank.report.comparing.judging import judged_by
from schemabank.report.comparing.margins import Margin, stated_margin
from schemabank.report.comparing.material import gather
from schemabank.report.contents import Report, TableFile, find_topics
from schemabank.report.others import examine_others
from schemabank.report.reading.itemresults import ItemResults
from schemabank.report.reading.itemtable import is_item_table, read_item_table
from schemabank.report.reading.packed import is_packed, unpacked
from schemabank.report.reading.places import read_places
from schemabank.report.reading.results import SUFFIXES, holds_results, read_results
from schemabank.report.reading.runs import RunSet, read_runs
from schemabank.report.reading.table import ScoreTable, choose_arms, read_scores
from schemabank.report.reading.tabulate import choose_contrast
from schemabank.report.sections import provenance
from schemabank.report.sections.verdict import Scoring
from schemabank.report.warnings.adapters import adapters_in_doubt
from schemabank.report.warnings.finding import by_weight
from schemabank.report.warnings.margins import undeclared_margin
from schemabank.report.warnings.scores import find_warnings
from schemabank.report.warnings.training import Facts, find_run_warnings
from schemabank.runs.folder import RESULT, SUITE


@dataclass(frozen=True)
class Question:
    """What is asked of a table or of runs.

    Attributes:
        treatment: arm; ``None`` where two arms make it clear, or the runs declare it.
        control: arm; likewise.
        primary: setting that was declared primary; ``None`` for the mean over all.
        test_size: items of the whole test split, where known.
        claims: file of claims; ``None`` for the one beside the table, if it is there.
        group: part of the split that runs are compared on; ``None`` for the first.
        margin: in points, the largest difference that does not matter; ``None`` for the runs' own.
        arms: of other tools' results, as ``NAME=PATH`` or ``NAME:SEED=PATH``.
        metric: of such results; ``None`` for each task's first.
        cluster_by: field of such items that names what they were drawn with.
    """

    treatment: str | None = None
    control: str | None = None
    primary: str | None = None
    test_size: int | None = None
    claims: Path | None = None
    group: str | None = None
    margin: float | None = None
    arms: tuple[str, ...] = ()
    metric: str | None = None
    cluster_by: str | None = None


def examine(path: Path | None, question: Question) -> Report:
    """Return everything that a report says of runs, a table, or other tools' results.

    Args:
        path: a folder of runs or their packed record, a CSV, or a folder or file of other tools;
            ``None`` where the question names the arms' own places.
        question: what is asked.

    Raises:
        InputError: they cannot be read or compared as asked.
    """
    if path is not None and not question.arms:
        if _holds_runs(path):
            with unpacked(path) as folder:
                return _examine_runs(folder, question)
        if path.suffix not in SUFFIXES and not path.is_dir():
            return _examine_table(path, question)
    _refuse(question, ("group", "claims"), "results of other tools")
    places = read_places(path, question.arms)
    found = read_results(places, question.metric, question.cluster_by)
    if isinstance(found, ScoreTable):
        return _report_on_table(found, question, None)
    return _examine_others(found, question)


def _holds_runs(path: Path) -> bool:
    """Whether a path is that of runs; so is a folder that holds nothing at all."""
    if is_packed(path):
        return True
    is_ours = any(path.glob(f"*/{RESULT}")) or (path / SUITE).exists() or (path / RESULT).exists()
    return path.is_dir() and (is_ours or not holds_results(path))


def _refuse(question: Question, names: Sequence[str], what: str) -> None:
    """Refuse options that cannot be asked of what is reported."""
    for name in names:
        if (value := getattr(question, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {str(value)!r}: not allowed with {what}: leave it out")


def _examine_others(results: ItemResults, question: Question) -> Report:
    return examine_others(
        results,
        (question.treatment, question.control),
        question.primary,
        margin=stated_margin(question.margin),
        test_size=question.test_size,
    )


def _examine_table(path: Path, question: Question) -> Report:
    _refuse(question, ("group", "metric", "cluster_by"), f"{path.name}, a table")
    if is_item_table(path):
        _refuse(question, ("claims",), f"{path.name}, a table of items")
        return _examine_others(read_item_table(path), question)
    return _report_on_table(read_scores(path), question, question.claims or beside(path))


def _report_on_table(table: ScoreTable, question: Question, claims: Path | None) -> Report:
    treatment, control = choose_arms(table, question.treatment, question.control)
    comparison = compare(table, treatment, control, question.primary)
    comparison = judged_by(stated_margin(question.margin), comparison)
    warnings = find_warnings(table, comparison, question.test_size)
    judged = judge_claims(claims, Subject(table, treatment, control)) if claims else []
    return Report(
        table=TableFile(table.name, table.sha256, len(table.rows)),
        comparison=comparison,
        warnings=by_weight(warnings, (treatment, control)),
        claims_file=claims.name if claims else None,
        claims=judged,
    )


def _examine_runs(path: Path, question: Question) -> Report:
    _refuse(question, ("claims", "metric", "cluster_by"), f"{str(path)!r}, a folder of runs")
    runs = read_runs(path)
    group = chosen_group(runs, question.group)
    arms = choose_contrast(runs, question.treatment, question.control)
    material = gather(path, runs, group, arms, question.primary)
    margin = stated_margin(question.margin) or declared_margin(runs, arms)
    material = replace(material, comparison=judged_by(margin, material.comparison))
    topics, samples = find_topics(material)
    known = Facts(material.settings, topics.rates, topics.behaviour, topics.cost)
    warnings = [
        *adapters_in_doubt(runs),
        *find_warnings(material.table, material.comparison, question.test_size),
        *find_run_warnings(runs, group, material.comparison, known),
        *undeclared_margin(runs, material.comparison),
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
    if runs.margin is None or runs.contrast != arms:
        return None
    return Margin(runs.margin, "declared in the suite")


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
