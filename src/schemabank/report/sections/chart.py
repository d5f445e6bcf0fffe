"""A chart of a report: in words, as a drawing and as a table; and what all charts have in common.

A chart of very much data draws an even selection and says so; means and intervals are always of all
of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from schemabank.common.tables import PlainTable
from schemabank.report.figures import Spec
from schemabank.report.sections.cells import finite
from schemabank.stats import Interval

Item = TypeVar("Item")
ALL = "all runs"  # where no setting varies
MOST_ARMS = 12
MOST_SETTINGS = 24
MOST_PANELS = 6


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its files, without a suffix.
        title: without names of arms, which are anybody's text.
        caption: how it is read, and which data are left out.
        spec: Vega-Lite.
        table: the same data, folded below the drawing on the HTML page. Markdown and the terminal
            show what ``contents.sections`` and ``contents.tables`` list; of two equal tables the
            page shows one.
        arms: that can be made to stand out.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    table: PlainTable
    arms: Sequence[str] = ()


@dataclass(frozen=True)
class Labels:
    """What all charts of a report call things.

    Attributes:
        arms: all arms that are compared, treatment and control first.
        score: what the scores are.
        setting_name: what a setting of an arm is called.
    """

    arms: Sequence[str]
    score: str
    setting_name: str

    def drawn(self, arms: Iterable[str]) -> list[str]:
        """Return arms, as many as a chart has room for, in the order that all charts have."""
        has = dict.fromkeys(arms)
        return [name for name in dict.fromkeys([*self.arms, *has]) if name in has][:MOST_ARMS]


def mean_and_ends(mean: float | None, ends: Interval | None) -> dict[str, float | None]:
    """Return a mean and its interval, in percent, as the cells of a chart's row."""
    low, high = ends or (None, None)
    found = {"mean": mean, "low": low, "high": high}
    return {name: 100 * value if finite(value) else None for name, value in found.items()}


def first(names: Iterable[str], most: int) -> list[str]:
    """Return the first distinct names."""
    return list(dict.fromkeys(names))[:most]


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, the first and the last among them, at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def left_out(items: Sequence[object], num: int, what: str) -> str:
    """Say how many are drawn, where these are not all."""
    return f" {num:,} of {len(items):,} {what} are drawn." if num < len(items) else ""


def given(*found: Item | None) -> list[Item]:
    """Return what is there."""
    return [one for one in found if one is not None]


def table_of(title: str, rows: Sequence[Mapping[str, str]]) -> PlainTable | None:
    """Return a table of rows, which are cells by the heads of their columns; none without rows."""
    return (title, list(rows[0]), [list(row.values()) for row in rows]) if rows else None
