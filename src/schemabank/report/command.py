"""The command ``schemabank report``: results in, one dictionary and its pages out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemabank.errors import InputError
from schemabank.figures import write_figure
from schemabank.report.claims.judgements import beside, judge_claims
from schemabank.report.claims.statistics import Subject
from schemabank.report.comparing.comparison import compare
from schemabank.report.examine import examine_runs
from schemabank.report.page import html_page, page
from schemabank.report.plain import plain, plain_fields
from schemabank.report.reading.table import choose_arms, read_scores
from schemabank.report.sections.charts import figures
from schemabank.report.warnings.scores import find_warnings
from schemabank.rundir import check_new, new_folder
from schemabank.writing import write_json, write_lines

JSON, PAGE, HTML, SAMPLES = "report.json", "report.md", "report.html", "samples.jsonl"

Report = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked of a table.

    Attributes:
        treatment: arm; ``None`` where two arms make it clear.
        control: arm; likewise.
        primary: setting that was declared primary; ``None`` for the mean over all.
        test_size: items of the whole test split, where known.
        claims: file of claims; ``None`` for the one beside the table, if it is there.
        group: part of the split that runs are compared on; ``None`` for the first.
    """

    treatment: str | None = None
    control: str | None = None
    primary: str | None = None
    test_size: int | None = None
    claims: Path | None = None
    group: str | None = None


def report(path: Path, question: Question, out: Path | None = None) -> Report:
    """Examine a folder of runs or a table of results, and write the report if a folder is named.

    Args:
        path: folder of runs, or CSV with the columns ``arm,epochs,seed,score[,n_items]``.
        question: what is asked.
        out: folder to write; must not exist.

    Returns:
        The contents of ``report.json``.

    Raises:
        InputError: a run or a line is wrong, the arms are not clear, or ``out`` exists.
    """
    if out is not None:
        check_new(out)
    found, samples = _of_folder(path, question) if path.is_dir() else (examine(path, question), [])
    if out is not None:
        with new_folder(out) as partial:
            _write(partial, found, samples)
    return found


def _of_folder(path: Path, question: Question) -> tuple[Report, list[dict[str, Any]]]:
    if question.claims is not None:
        raise InputError(
            f"--claims {str(question.claims)!r}: allowed with a table of results, but "
            f"{str(path)!r} is a folder of runs: leave it out"
        )
    return examine_runs(
        path,
        treatment=question.treatment,
        control=question.control,
        primary=question.primary,
        group=question.group,
        test_size=question.test_size,
    )


def _write(folder: Path, found: Report, samples: list[dict[str, Any]]) -> None:
    """Write the report, its pages and its figures."""
    write_json(folder / JSON, found)
    if samples:
        write_lines(folder / SAMPLES, samples)
    for name, spec in figures(found).items():
        write_figure(folder / name, spec)
    (folder / PAGE).write_text(page(found), encoding="utf-8")
    (folder / HTML).write_text(html_page(found, samples), encoding="utf-8")


def examine(path: Path, question: Question) -> Report:
    """Return everything that a report says of a table, as JSON knows it."""
    if question.group is not None:
        raise InputError(
            f"--group {question.group!r}: allowed with a folder of runs, but {path.name} is a "
            "table of results: leave it out"
        )
    table = read_scores(path)
    treatment, control = choose_arms(table, question.treatment, question.control)
    comparison = compare(table, treatment, control, question.primary)
    warnings = find_warnings(table, comparison, question.test_size)
    claims = question.claims or beside(path)
    judged = judge_claims(claims, Subject(table, treatment, control)) if claims else []
    return {
        "table": {"name": table.name, "sha256": table.sha256, "num_rows": len(table.rows)},
        **plain_fields(comparison),
        "warnings": plain(warnings),
        "claims_file": claims.name if claims else None,
        "claims": plain(judged),
    }
