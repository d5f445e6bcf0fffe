"""What is known of a folder of runs once its runs are read and two arms compared.

All topics of a report are made from this.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from schemabank.report.comparing.comparison import Comparison, Contrast, compare
from schemabank.report.comparing.items import ItemTable
from schemabank.report.reading.runs import RunSet
from schemabank.report.reading.table import ScoreTable
from schemabank.report.reading.tabulate import as_table, with_control


@dataclass(frozen=True)
class Material:
    """Runs, their scores, and the comparison of two arms.

    Attributes:
        folder: of the runs.
        runs: that lie there.
        group: part of the split that they are compared on.
        primary: setting that was declared primary; ``None`` for the mean over all.
        table: the runs' scores.
        by_item: their scores of single items.
        comparison: of treatment and control.
    """

    folder: Path
    runs: RunSet
    group: str
    primary: str | None
    table: ScoreTable
    by_item: ItemTable
    comparison: Comparison

    @property
    def arms(self) -> tuple[str, str]:
        """Treatment and control."""
        return self.comparison.treatment, self.comparison.control

    @property
    def settings(self) -> list[str]:
        """The settings whose mean the primary contrast compares."""
        if self.primary is not None:
            return [self.primary]
        return [contrast.setting or "" for contrast in self.comparison.contrasts]


def gather(
    folder: Path, runs: RunSet, group: str, arms: tuple[str, str], primary: str | None
) -> Material:
    """Compare two arms on one part of the split.

    Raises:
        InputError: the runs cannot be compared as asked.
    """
    by_item = ItemTable(runs)
    table = with_control(as_table(runs, group), *arms)
    comparison = compare(table, *arms, primary, partial(by_item.difference, group))
    return Material(folder, runs, group, primary, table, by_item, comparison)


def primary_contrast(material: Material, group: str) -> Contrast:
    """Return the primary contrast on another part of the split."""
    table = with_control(as_table(material.runs, group), *material.arms)
    items = partial(material.by_item.difference, group)
    found = compare(table, *material.arms, material.primary, items)
    if material.primary is None:
        return found.pooled
    return next(c for c in found.contrasts if c.setting == material.primary)
