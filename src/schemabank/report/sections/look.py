"""How a report's charts look: Vega-Lite, made with altair, one look for all.

Arms are told apart by colour, shape and dash, so that none of the three is needed. The parameter
``arm`` names the one that stands out; a click on a name in the legend does the same.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from schemabank.report import altair
from schemabank.report.figures import COLOUR, LOOK, Datum, Spec

Look = dict[str, Any]

WIDTH, HEIGHT, ROW_HEIGHT, LINE_HEIGHT = 620, 260, 38, 14  # pixels
PANEL_WIDTH, PANEL_COLUMNS = 290, 2
# All stand out at 3 to 1 from white and from a dark page.
PALETTE = (COLOUR, "#c9631b", "#2f8f5b", "#9a60c4", "#cf4350", "#1f8a99", "#8c7a1c", "#77808c")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ((1, 0), (6, 3), (2, 2), (9, 3, 2, 3), (4, 2))
FAINT = 0.12
TEXT = {"value": "currentColor"}  # colours of arms are too pale for letters
_LEGEND: Look = {"orient": "top", "labelLimit": 260, "columns": 4}
POINTS = {**_LEGEND, "symbolSize": 90, "symbolStrokeWidth": 0}
LINES = {**_LEGEND, "symbolSize": 400, "symbolStrokeWidth": 2, "symbolType": "stroke"}
PLOT_LOOK = {
    **LOOK,
    "axis": {**LOOK["axis"], "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"},
    "legend": {**LOOK["legend"], "labelFontSize": 12},
    "header": {**LOOK["header"], "labelFontSize": 12},
    "text": {"fontSize": 11},
}


def panel_size(rows: Sequence[Datum]) -> tuple[int, int]:
    """Return width and height of each panel in pixels."""
    one = len({row["panel"] for row in rows}) == 1
    return (WIDTH, HEIGHT) if one else (PANEL_WIDTH, HEIGHT * 2 // 3)


def over(rows: Sequence[Datum]) -> "altair.Chart":
    """Begin a chart of rows."""
    return altair.Chart(altair.InlineData(values=[dict(row) for row in rows]))


def colour(arms: Sequence[str], legend: Look) -> "altair.Color":
    """Return the colours of arms."""
    return altair.Color(
        "arm:N", scale=_scale(arms, PALETTE), title=None, legend=altair.Legend(**legend)
    )


def shape(arms: Sequence[str]) -> "altair.Shape":
    """Return the shapes of arms' points."""
    return altair.Shape(
        "arm:N", scale=_scale(arms, SHAPES), title=None, legend=altair.Legend(**POINTS)
    )


def dash(arms: Sequence[str], legend: Look) -> "altair.StrokeDash":
    """Return the dashes of arms' lines."""
    return altair.StrokeDash(
        "arm:N", scale=_scale(arms, DASHES), title=None, legend=altair.Legend(**legend)
    )


def _scale(arms: Sequence[str], values: Sequence[Any]) -> "altair.Scale":
    return altair.Scale(domain=list(arms), range=list(islice(cycle(values), len(arms))))


def tooltip(**titles: str) -> "list[altair.Tooltip]":
    """Return fields and their titles; numbers have four digits."""
    words = {"arm", "setting", "label", "seed", "words", "name"}
    return [
        altair.Tooltip(f"{field}:N", title=title)
        if field in words
        else altair.Tooltip(f"{field}:Q", title=title, format=".4~g")
        for field, title in titles.items()
    ]


def paneled(
    layers: "list[altair.Chart]", rows: Sequence[Datum], alt: str, arms: Sequence[str]
) -> Spec:
    """Return layers of one set of rows, with a panel for each setting where there are several."""
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    width, height = panel_size(rows)
    one = altair.layer(*layers).properties(width=width, height=height)
    if len(panels) == 1:
        return finished(one, alt, arms)
    facet = altair.Facet("panel:N", sort=panels, title=None)
    return finished(one.facet(facet, columns=PANEL_COLUMNS), alt, arms)


def finished(chart: "altair.LayerChart | altair.FacetChart", alt: str, arms: Sequence[str]) -> Spec:
    """Return the specification; what belongs to an arm fades while another stands out."""
    spec: Spec = chart.properties(description=alt).configure(**PLOT_LOOK).to_dict()
    if len(arms) < 2:
        return spec
    # Not through altair: it would number the views by a counter of the process.
    layers = spec.get("spec", spec)["layer"]
    test = {"and": [{"param": "pick"}, "arm == '' || datum.arm == arm"]}
    armed = [layer for layer in layers if "color" in layer.get("encoding", {})]
    for layer in armed:
        layer["encoding"]["opacity"] = {"condition": {"test": test, "value": 1}, "value": FAINT}
    pick = {"name": "pick", "select": {"type": "point", "fields": ["arm"]}, "bind": "legend"}
    armed[0]["params"] = [pick]
    return {**spec, "params": [{"name": "arm", "value": ""}]}
