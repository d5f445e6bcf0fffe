"""The command ``schemabank report``: a table of results in, one dictionary and its page out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemabank.report.claimed import Subject
from schemabank.report.claims import beside, judge_claims
from schemabank.report.compare import compare, plain
from schemabank.report.page import page
from schemabank.report.scores import choose_arms, read_scores
from schemabank.report.warnings import find_warnings
from schemabank.rundir import check_new, new_folder, write_json

JSON, PAGE = "report.json", "report.md"

Report = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked of a table.

    Attributes:
        treatment: arm; ``None`` where two arms make it clear.
        control: arm; likewise.
        primary: setting of ``epochs`` that was declared primary; ``None`` for the mean over all.
        test_size: items of the whole test split, where known.
        claims: file of claims; ``None`` for the one beside the table, if it is there.
    """

    treatment: str | None = None
    control: str | None = None
    primary: str | None = None
    test_size: int | None = None
    claims: Path | None = None


def report(path: Path, question: Question, out: Path | None = None) -> Report:
    """Examine a table of results, and write the report if a folder is named.

    Args:
        path: CSV with the columns ``arm,epochs,seed,score[,n_items]``.
        question: what is asked.
        out: folder to write; must not exist.

    Returns:
        The contents of ``report.json``.

    Raises:
        InputError: a line of either file is wrong, the arms are not clear, or ``out`` exists.
    """
    if out is not None:
        check_new(out)
    found = examine(path, question)
    if out is not None:
        with new_folder(out) as partial:
            write_json(partial / JSON, found)
            (partial / PAGE).write_text(page(found), encoding="utf-8")
    return found


def examine(path: Path, question: Question) -> Report:
    """Return everything that a report says of a table, as JSON knows it."""
    table = read_scores(path)
    treatment, control = choose_arms(table, question.treatment, question.control)
    comparison = compare(table, treatment, control, question.primary)
    warnings = find_warnings(table, comparison, question.test_size)
    claims = question.claims or beside(path)
    judged = judge_claims(claims, Subject(table, treatment, control)) if claims else []
    return {
        "table": {"name": table.name, "sha256": table.sha256, "num_rows": len(table.rows)},
        **_mapping(plain(comparison)),
        "warnings": plain(warnings),
        "claims_file": claims.name if claims else None,
        "claims": plain(judged),
    }


def _mapping(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return value
