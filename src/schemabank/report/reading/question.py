"""What a report is asked, and what it reads: a folder of runs or a table of results.

This comes before anything is computed, and needs nothing that takes long to import.
"""

from dataclasses import dataclass
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.reading.runs import RunSet, read_runs
from schemabank.report.reading.table import ScoreTable, read_scores


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
    """

    treatment: str | None = None
    control: str | None = None
    primary: str | None = None
    test_size: int | None = None
    claims: Path | None = None
    group: str | None = None


def read_results(path: Path, question: Question) -> ScoreTable | RunSet:
    """Read a folder of runs or a table of results.

    Raises:
        InputError: it cannot be read, or the question is not one of its kind.
    """
    if path.is_dir():
        _check_no_claims(path, question)
        return read_runs(path)
    _check_no_group(path, question)
    return read_scores(path)


def _check_no_group(path: Path, question: Question) -> None:
    if question.group is not None:
        raise InputError(
            f"--group {question.group!r}: allowed with a folder of runs, but {path.name} is a "
            "table of results: leave it out"
        )


def _check_no_claims(path: Path, question: Question) -> None:
    if question.claims is not None:
        raise InputError(
            f"--claims {str(question.claims)!r}: allowed with a table of results, but "
            f"{str(path)!r} is a folder of runs: leave it out"
        )
