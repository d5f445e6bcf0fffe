"""Heat maps of what routers chose, from the routing analyses that lie in runs' folders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemabank.report.figures import Cell, heat_map
from schemabank.report.reading import RunSet
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
            yield _chart(f"routing-{index}", f"Routing {index}", own)


def _chart(name: str, title: str, found: HeatMap) -> Chart:
    cells = [Cell(str(c.x), str(c.y), c.value, str(c.panel)) for c in found.cells]
    names = {"x_title": found.x_title, "y_title": found.y_title, "value_title": found.value_title}
    titles = {key: str(name) for key, name in names.items()}
    head = ["panel", titles["y_title"], titles["x_title"], titles["value_title"]]
    return Chart(
        name=name,
        title=title,
        caption=f"{found.title}; run {found.run}. The stronger the colour, the larger the value.",
        spec=heat_map(cells, title=found.title, **titles),
        table=(title.lower(), head, [[c.panel, c.y, c.x, short(c.value)] for c in cells]),
    )
