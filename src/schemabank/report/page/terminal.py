"""A report for a terminal: tables, and text below them."""

from collections.abc import Sequence

from schemabank.common.lines import marked_line
from schemabank.common.tables import PlainTable
from schemabank.report import contents
from schemabank.report.contents import Report, warning_lines
from schemabank.report.sections import claims, verdict

LONGEST_CELL = 60  # characters
CELL_END = 20  # of them, from the end: names often differ there


def tables(report: Report) -> list[PlainTable]:
    """Return all tables: title, head and rows."""
    return [
        (title, head, [[_short_cell(cell) for cell in row] for row in rows])
        for title, head, rows in contents.tables(report)
    ]


def text(report: Report) -> str:
    """Return what stands below the tables."""
    own = report.comparison
    lines = [f"verdict: {verdict.sentence(own)}"]
    lines += verdict.other_sentences(own, report.scored, report.topics.groups)
    lines += ["", f"{len(report.warnings)} warnings", *_bullets(warning_lines(report))]
    if report.claims:
        lines += ["", claims.title(report.claims), *_bullets(claims.lines(report.claims))]
    return "".join(f"{marked_line(line)}\n" for line in lines)


def _bullets(lines: Sequence[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _short_cell(text: str) -> str:
    """Anybody's text; of a long one the start and the end."""
    shown = marked_line(text)
    if len(shown) <= LONGEST_CELL:
        return shown
    return f"{shown[: LONGEST_CELL - CELL_END - 1]}…{shown[-CELL_END:]}"
