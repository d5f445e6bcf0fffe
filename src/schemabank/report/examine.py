"""What a report says: read, compared, and looked at as a sceptical reviewer would."""

from dataclasses import dataclass, replace
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.claims.judgements import beside, judge_claims
from schemabank.report.claims.statistics import Subject
from schemabank.report.comparing.comparison import Comparison, compare
from schemabank.report.comparing.margins import Margin, judged_by, stated_margin
from schemabank.report.comparing.material import gather
from schemabank.report.contents import Report, TableFile, find_topics
from schemabank.report.reading.packed import is_packed, unpacked
from schemabank.report.reading.runs import RunSet, read_runs
from schemabank.report.reading.table import choose_arms, read_scores
from schemabank.report.reading.tabulate import choose_contrast
from schemabank.report.sections import provenance
from schemabank.report.sections.verdict import Scoring
from schemabank.report.warnings.adapters import adapters_in_doubt
from schemabank.report.warnings.finding import by_weight
from schemabank.report.warnings.margins import undeclared_margin
from schemabank.report.warnings.scores import find_warnings
from schemabank.report.warnings.training import Facts, find_run_warnings


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
    """

    treatment: str | None = None
    control: str | None = None
    primary: str | None = None
    test_size: int | None = None
    claims: Path | None = None
    group: str | None = None
    margin: float | None = None


def examine(path: Path, question: Question) -> Report:
    """Return everything that a report says of runs, also packed ones, or a table of results.

    Raises:
        InputError: the runs or the table cannot be read or compared as asked.
    """
    if path.is_dir() or is_packed(path):
        with unpacked(path) as folder:
            return _examine_runs(folder, question)
    return _examine_table(path, question)


def _examine_table(path: Path, question: Question) -> Report:
    if question.group is not None:
        raise InputError(
            f"--group {question.group!r}: allowed with a folder of runs, but {path.name} is a "
            "table of results: leave it out"
        )
    table = read_scores(path)
    treatment, control = choose_arms(table, question.treatment, question.control)
    comparison = compare(table, treatment, control, question.primary)
    comparison = _with_margin(comparison, stated_margin(question.margin))
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


def _examine_runs(path: Path, question: Question) -> Report:
    if question.claims is not None:
        raise InputError(
            f"--claims {str(question.claims)!r}: allowed with a table of results, but "
            f"{str(path)!r} is a folder of runs: leave it out"
        )
    runs = read_runs(path)
    group = chosen_group(runs, question.group)
    arms = choose_contrast(runs, question.treatment, question.control)
    material = gather(path, runs, group, arms, question.primary)
    margin = stated_margin(question.margin) or declared_margin(runs, arms)
    material = replace(material, comparison=_with_margin(material.comparison, margin))
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


def _with_margin(comparison: Comparison, margin: Margin | None) -> Comparison:
    judged = judged_by(margin, comparison.primary_contrast.own.difference)
    return replace(comparison, primary=replace(comparison.primary, margin=judged))
