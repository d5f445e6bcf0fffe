"""Treatment against control item by item."""

from schemabank.common.tables import PlainTable
from schemabank.report.comparing import ItemComparison
from schemabank.report.sections.cells import interval, number, place, points, short
from schemabank.report.sections.chart import given, table_of


def tables(found: ItemComparison | None) -> list[PlainTable]:
    """Return the difference over seeds and items, and what flips for every seed."""
    return [] if found is None else given(_crossed(found), _mcnemar(found))


def _crossed(found: ItemComparison) -> PlainTable | None:
    row = [
        number(found.num_items, 0),
        str(found.num_seeds),
        points(found.crossed.mean),
        interval(found.crossed.interval, 100),
        points(found.crossed.standard_error).lstrip("+"),
    ]
    head = ["items", "seeds", "difference", "95 % interval", "standard error"]
    return table_of("over other seeds and other items at once, in points of percent", head, [row])


def _mcnemar(found: ItemComparison) -> PlainTable | None:
    rows = [
        [
            str(flips.seed),
            place(flips.setting),
            number(flips.only_treatment, 0),
            number(flips.only_control, 0),
            short(flips.p),
        ]
        for flips in found.mcnemar
    ]
    head = ["seed", "setting", "treatment alone is right", "control alone is right", "McNemar's p"]
    return table_of("pairs of runs, item by item", head, rows)
