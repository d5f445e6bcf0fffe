"""Heat maps of what routers chose, from the routing analyses that lie in runs' folders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemabank.report.figures import Cell, heat_map
from schemabank.report.reading.runs import RunSet
from schemabank.report.routing.report import JSON, heat_map_cells
from schemabank.report.sections.cells import short
from schemabank.report.sections.chart import Chart
from schemabank.runs.folder import ROUTING
from schemabank.runs.stored import read_routing

MOST_MAPS = 8
MOST_CELLS = 2_500  # of all heat maps in charts


@dataclass(frozen=True)
class HeatMap:
    """One heat map of one run."""

    run: str
    title: str
    x_title: str
    y_title: str
    value_title: str
    cells: list[Cell]


def find(runs: RunSet) -> list[HeatMap]:
    """Return the maps of the first routing analyses that are there, at most ``MOST_MAPS``.

    Raises:
        InputError: one of them is damaged.
    """
    found: list[HeatMap] = []
    for run in runs.runs:
        for path in sorted((run.folder / ROUTING).glob(f"*/{JSON}")):
            for rows, title, cells in heat_map_cells(read_routing(path)).values():
                found.append(HeatMap(run.run_id, title, "schema", rows, "share", cells))
            if len(found) >= MOST_MAPS:
                return found[:MOST_MAPS]
    return found


def charts(found: Sequence[HeatMap]) -> Iterator[Chart]:
    """Return heat maps that fit, whole: half of one would look like missing data."""
    left = MOST_CELLS
    for index, own in enumerate(found, 1):
        if own.cells and len(own.cells) <= left:
            left -= len(own.cells)
            yield _chart(own, index)


def _chart(own: HeatMap, index: int) -> Chart:
    titles = {"x_title": own.x_title, "y_title": own.y_title, "value_title": own.value_title}
    head = ["panel", own.y_title, own.x_title, own.value_title]
    cells = [[cell.panel, cell.y, cell.x, short(cell.value)] for cell in own.cells]
    return Chart(
        name=f"routing-{index}",
        title=f"Routing {index}",
        caption=f"{own.title}; run {own.run}. The stronger the colour, the larger the value.",
        spec=heat_map(own.cells, title=own.title, **titles),
        table=(f"routing {index}", head, cells),
    )
