"""Numbers and tables as the pages of findings write them."""

from collections.abc import Iterable, Mapping

from schemabank.common.tables import markdown_cells
from schemabank.stats import Interval

MINUS = "−"


def percent(share: float) -> str:
    """Return a share as percent with one decimal."""
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", MINUS)


def more(share: float) -> str:
    """Return a positive difference of shares in percentage points, without a sign."""
    assert share > 0
    return f"{100 * share:.1f}"


def less(share: float) -> str:
    """Return a negative difference of shares in percentage points, without a sign."""
    return more(-share)


def interval_of(ends: Interval | None) -> str:
    """Return an interval of a difference in percentage points.

    An end that is not 0 is not rounded to 0, as its side of 0 decides the verdict.
    """
    return "" if ends is None else f"{_end(ends[0])} to {_end(ends[1])}"


def _end(share: float) -> str:
    rounded = points(share)
    is_lost = share != 0 and rounded == points(0)
    return f"{100 * share:+.1g}".replace("-", MINUS) if is_lost else rounded


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Return a Markdown table of cells in Markdown; a row leaves empty what it does not name."""
    found = list(rows)
    names = list(dict.fromkeys(name for row in found for name in row))
    return "\n".join(markdown_cells(names, [[row.get(n, "") for n in names] for row in found]))
