"""Scores without a seed, beside which the arms are shown."""

from dataclasses import dataclass, field

from schemabank import stats
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.table import ScoreTable


@dataclass(frozen=True)
class Reference:
    """A row without a seed, with its Wilson interval over items."""

    arm: str
    setting: str = field(metadata=EPOCHS)
    score: float
    num_items: int | None
    interval: stats.Interval | None


def find_references(table: ScoreTable) -> list[Reference]:
    """Return all references of a table, in its order."""
    found = []
    for row in table.references:
        interval = None
        if row.num_items and row.num_correct is not None:
            interval = stats.wilson_interval(row.num_correct, row.num_items)
        found.append(Reference(row.arm, row.setting, row.score, row.num_items, interval))
    return found
