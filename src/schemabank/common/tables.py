"""Tables of cells: on a screen as they stand, and in Markdown."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from schemabank.common.errors import printable
from schemabank.common.lines import markdown_cell

PlainTable = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, head, rows


def without_empty_columns(table: PlainTable) -> PlainTable:
    """Leave out the columns that hold nothing in any row."""
    title, head, rows = table
    kept = [at for at in range(len(head)) if not rows or any(row[at] for row in rows)]
    return title, [head[at] for at in kept], [[row[at] for at in kept] for row in rows]


def plain_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Lay out cells, whose text may hold anything, as they stand; numbers to the right.

    Columns that hold nothing are left out.
    """
    _, head, rows = without_empty_columns((title, head, rows))
    table = bare_table(title)
    for index, column in enumerate(head):
        is_text = any(row[index][:1].isalpha() for row in rows)
        table.add_column(plain(column), justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def bare_table(title: str) -> Table:
    """Return a table in the style of all tables on a screen, without columns as yet."""
    shown = plain(title, style="table.title")
    return Table(title=shown, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def plain(text: str, *, style: str = "") -> Text:
    """Return anybody's text for a table on a screen: it has no styles and steers no terminal."""
    return Text(printable(text, keep="\n"), style=style)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table of texts, which may hold anything."""
    shown = [[markdown_cell(cell) for cell in row] for row in (head, *rows)]
    return markdown_cells(shown[0], shown[1:])


def markdown_cells(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table whose cells are Markdown, as those of its head are."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
