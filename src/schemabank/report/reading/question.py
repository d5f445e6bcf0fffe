"""What a report is asked, and what it reads: runs, a table, or results of other tools.

This comes before anything is computed, and needs nothing that takes long to import.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.reading.evaluations import SUFFIXES, holds_evaluations, read_evaluations
from schemabank.report.reading.itemresults import ItemResults
from schemabank.report.reading.itemtable import is_item_table, read_item_table
from schemabank.report.reading.packed import is_packed, unpacked
from schemabank.report.reading.places import read_places
from schemabank.report.reading.runs import RunSet, read_runs
from schemabank.report.reading.table import ScoreTable, read_scores
from schemabank.report.reading.wandbruns import WANDB, is_exported_table, read_exported_table
from schemabank.runs.folder import RESULT, SUITE


@dataclass(frozen=True)
class Question:
    """What is asked of a table or of runs.

    Attributes:
        treatment: arm; ``None`` where two arms make it clear, or the runs declare it.
        control: arm; likewise.
        primary: setting that was declared primary; ``None`` for what the runs declare for these
            arms, or the mean over all.
        test_size: items of the whole test split, where known.
        claims: file of claims; ``None`` for the one beside the table, if it is there.
        group: part of the split that runs are compared on; ``None`` for what they declare for
            these arms, or the first.
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


Found = ScoreTable | RunSet | ItemResults


@contextmanager
def read_results(path: Path | None, question: Question) -> Iterator[tuple[Path | None, Found]]:
    """Yield what lies at a path, and where: a packed record is unpacked for as long as it is used.

    Args:
        path: a folder of runs or their packed record, a CSV, or a folder or file of other tools;
            ``None`` where the question names the arms' own places.
        question: what is asked.

    Raises:
        InputError: it cannot be read, or the question is not one of its kind.
    """
    if path is None or question.arms:
        yield path, _read_others(path, question)
    elif _holds_runs(path):
        _refuse(question, ("claims", "metric", "cluster_by"), f"{str(path)!r}, a folder of runs")
        with unpacked(path) as folder:
            yield folder, read_runs(folder)
    elif path.suffix in SUFFIXES or path.is_dir():
        yield path, _read_others(path, question)
    else:
        yield path, _read_table(path, question)


def _holds_runs(path: Path) -> bool:
    """Whether a path is that of runs; so is a folder that holds nothing at all."""
    if is_packed(path):
        return True
    is_ours = any(path.glob(f"*/{RESULT}")) or (path / SUITE).exists() or (path / RESULT).exists()
    return path.is_dir() and (is_ours or not holds_evaluations(path))


def _read_others(path: Path | None, question: Question) -> ItemResults | ScoreTable:
    _refuse(question, ("group", "claims"), "results of other tools")
    places = read_places(path, question.arms)
    return read_evaluations(places, question.metric, question.cluster_by)


def _read_table(path: Path, question: Question) -> ItemResults | ScoreTable:
    if is_exported_table(path):
        what = f"{path.name}, a table of {WANDB}"
        _refuse(question, ("group", "claims", "cluster_by"), what)
        return read_exported_table(path, question.metric)
    _refuse(question, ("group", "metric", "cluster_by"), f"{path.name}, a table")
    if is_item_table(path):
        _refuse(question, ("claims",), f"{path.name}, a table of items")
        return read_item_table(path)
    return read_scores(path)


def _refuse(question: Question, names: Sequence[str], what: str) -> None:
    """Refuse options that cannot be asked of what is reported."""
    for name in names:
        if (value := getattr(question, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {str(value)!r}: not allowed with {what}: leave it out")
