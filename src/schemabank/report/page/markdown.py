"""A report as a page in Markdown."""

from collections.abc import Iterator, Sequence

from schemabank.common.lines import markdown_text
from schemabank.common.tables import PlainTable, markdown_table
from schemabank.report.contents import Report, Section, sections
from schemabank.report.page.markup import MOST_ROWS
from schemabank.report.sections.chart import Chart


def page(report: Report) -> str:
    """Return the report as Markdown, its charts as files beside it; names are escaped."""
    own = report.comparison
    lines = [f"# {markdown_text(own.treatment)} against {markdown_text(own.control)}"]
    for section in filter(lambda section: section.says_something, sections(report)):
        lines += _section_lines(section)
    return "\n".join(lines) + "\n"


def listed(lines: Sequence[str]) -> str:
    """Return lines as a Markdown list."""
    return "".join(f"{line}\n" for line in _list_items(lines))


def _section_lines(section: Section) -> Iterator[str]:
    yield from ("", f"## {markdown_text(section.title)}")
    for at, paragraph in enumerate(section.paragraphs):
        mark = "**" if at < section.leading else ""
        yield from ("", f"{mark}{markdown_text(paragraph)}{mark}")
    for chart in section.charts:
        yield from _chart_lines(chart)
    if section.lines is not None:
        yield from ("", *_list_items(section.lines))
    for table in section.tables:
        yield from _table_lines(table)


def _chart_lines(chart: Chart) -> Iterator[str]:
    drawing = f"![{markdown_text(chart.title)}]({chart.name}.svg)"
    yield from ("", drawing, "", markdown_text(chart.caption))


def _table_lines(table: PlainTable) -> Iterator[str]:
    title, head, rows = table
    yield from ("", f"### {markdown_text(title)}", "", *markdown_table(head, rows[:MOST_ROWS]))
    if len(rows) > MOST_ROWS:
        yield from ("", f"{MOST_ROWS:,} of {len(rows):,} rows; the others are in report.json.")


def _list_items(lines: Sequence[str]) -> list[str]:
    return [f"- {markdown_text(line)}" for line in lines] or ["None."]
