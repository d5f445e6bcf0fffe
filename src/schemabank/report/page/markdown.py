"""A report as a page in Markdown."""

import re
from collections.abc import Iterator, Sequence

from schemabank.common.tables import PlainTable
from schemabank.report.contents import Report, Section, sections
from schemabank.report.page.markup import MOST_ROWS, visible
from schemabank.report.sections.cells import one_line
from schemabank.report.sections.chart import Chart

MARKS = re.compile(r"([\\`*_{}\[\]<>#|])")


def page(report: Report) -> str:
    """Return the report as Markdown, its charts as files beside it; names are escaped."""
    own = report.comparison
    lines = [f"# {_escaped(own.treatment)} against {_escaped(own.control)}"]
    for section in filter(lambda section: section.says_something, sections(report)):
        lines += _section_lines(section)
    return "\n".join(lines) + "\n"


def listed(lines: Sequence[str]) -> str:
    """Return lines as a Markdown list."""
    return "".join(f"{line}\n" for line in _list_items(lines))


def _section_lines(section: Section) -> Iterator[str]:
    yield from ("", f"## {_escaped(section.title)}")
    for at, paragraph in enumerate(section.paragraphs):
        mark = "**" if at < section.leading else ""
        yield from ("", f"{mark}{_escaped(paragraph)}{mark}")
    for chart in section.charts:
        yield from _chart_lines(chart)
    if section.lines is not None:
        yield from ("", *_list_items(section.lines))
    for table in section.tables:
        yield from _table_lines(table)


def _chart_lines(chart: Chart) -> Iterator[str]:
    yield from ("", f"![{_escaped(chart.title)}]({chart.name}.svg)", "", _escaped(chart.caption))


def _table_lines(table: PlainTable) -> Iterator[str]:
    title, head, rows = table
    yield from ("", f"### {_escaped(title)}", "", *_markdown(head, rows[:MOST_ROWS]))
    if len(rows) > MOST_ROWS:
        yield from ("", f"{MOST_ROWS:,} of {len(rows):,} rows; the others are in report.json.")


def _list_items(lines: Sequence[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines] or ["None."]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[_escaped(cell) for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def _escaped(text: str) -> str:
    """Return anybody's text as it stands: no markup, one line."""
    return MARKS.sub(r"\\\1", one_line(visible(text)))
