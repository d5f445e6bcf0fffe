"""What is read from disk: tables of results, and folders of runs.

Both come out as a `ScoreTable`, so that the same code compares them.
"""

from schemabank.report.reading.runs import Left, ReportedRun, RunSet, label, read_runs
from schemabank.report.reading.settings import settings_of, words
from schemabank.report.reading.table import (
    LONGEST_NUMBER,
    Row,
    ScoreTable,
    choose_arms,
    in_order,
    known,
    read_cells,
    read_scores,
    read_text,
)
from schemabank.report.reading.tabulate import as_table, choose_contrast, with_control

__all__ = [
    "LONGEST_NUMBER",
    "Left",
    "ReportedRun",
    "Row",
    "RunSet",
    "ScoreTable",
    "as_table",
    "choose_arms",
    "choose_contrast",
    "in_order",
    "known",
    "label",
    "read_cells",
    "read_runs",
    "read_scores",
    "read_text",
    "settings_of",
    "with_control",
    "words",
]
