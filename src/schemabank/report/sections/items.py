"""Treatment against control item by item."""

from schemabank.common.tables import PlainTable
from schemabank.report.comparing.items import ItemComparison
from schemabank.report.sections.cells import interval, number, place, points, short
from schemabank.report.sections.chart import given, table_of


def tables(found: ItemComparison | None) -> list[PlainTable]:
    """Return the difference over seeds and items, and what flips for every seed."""
    return [] if found is None else given(_crossed_table(found), _mcnemar_table(found))


def _crossed_table(found: ItemComparison) -> PlainTable | None:
    single = found.num_seeds == 1
    row = {
        "items": number(found.num_items, 0),
        "seeds": str(found.num_seeds),
        "difference": points(found.crossed.mean),
        "95 % interval": interval(found.crossed.interval, 100),
        "standard error": points(found.crossed.standard_error).lstrip("+"),
    }
    over = "of these very runs over other items" if single else "over other seeds and other items"
    return table_of(f"{over}{'' if single else ' at once'}, in points of percent", [row])


def _mcnemar_table(found: ItemComparison) -> PlainTable | None:
    rows = [
        {
            "seed": str(flips.seed),
            "setting": place(flips.setting),
            "treatment alone is right": number(flips.only_treatment, 0),
            "control alone is right": number(flips.only_control, 0),
            "McNemar's p": short(flips.p),
        }
        for flips in found.mcnemar
    ]
    return table_of("pairs of runs, item by item", rows)
