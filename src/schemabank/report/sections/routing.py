"""Heat maps of what routers chose, from the routing analyses that lie in runs' folders."""

from dataclasses import dataclass
from typing import Any

from schemabank.errors import InputError
from schemabank.figures import Cell
from schemabank.files import read_json
from schemabank.report.reading.runs import RunSet
from schemabank.routing.report import JSON, heat_map_cells
from schemabank.rundir import ROUTING

MOST_MAPS = 8


@dataclass(frozen=True)
class HeatMap:
    """One heat map of one run."""

    run: str
    title: str
    x_title: str
    y_title: str
    value_title: str
    cells: list[Cell]


def heat_maps(runs: RunSet) -> list[HeatMap]:
    """Return the maps of the first routing analyses that are there, at most ``MOST_MAPS``."""
    found: list[HeatMap] = []
    for run in runs.runs:
        for path in sorted((run.folder / ROUTING).glob(f"*/{JSON}")):
            report: Any = read_json(path)
            try:
                maps = list(heat_map_cells(report).values())
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{str(path)!r} is no analysis of routing ({error!r:.200}): restore it, or "
                    "move its folder away"
                ) from error
            for rows, title, cells in maps:
                found.append(HeatMap(run.run_id, title, "schema", rows, "share", cells))
            if len(found) >= MOST_MAPS:
                return found[:MOST_MAPS]
    return found
