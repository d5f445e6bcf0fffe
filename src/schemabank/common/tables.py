"""Tables of cells: on a screen as they stand, and in Markdown."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from schemabank.common.errors import printable

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
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(printable(cell, keep="\n")) for cell in row))
    return table


def bare_table(title: str) -> Table:
    """Return a table in the style of all tables on a screen, without columns as yet."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; a ``|`` or the end of a line in a cell ends no cell."""
    cells = [[" ".join(cell.replace("|", "\\|").split("\n")) for cell in row] for row in rows]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]
