"""How a report's charts are drawn: Vega-Lite, made with altair, one look for all.

Arms are told apart by colour, shape and dash, so that none of the three is needed. The parameter
``arm`` names the one that stands out; a click on a name in the legend does the same.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any, Literal

import altair

from schemabank.figures import COLOUR, LONGEST_LABEL, LOOK, Spec
from schemabank.report.sections.stage_names import BESIDE, SIDES, rows_of

Row = Mapping[str, Any]
WIDTH, HEIGHT, ROW_HEIGHT, LINE_HEIGHT = 620, 260, 38, 14  # pixels
PANEL_WIDTH, PANEL_COLUMNS = 290, 2
# All stand out at 3 to 1 from white and from a dark page.
PALETTE = (COLOUR, "#c9631b", "#2f8f5b", "#9a60c4", "#cf4350", "#1f8a99", "#8c7a1c", "#77808c")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ((1, 0), (6, 3), (2, 2), (9, 3, 2, 3), (4, 2))
FAINT = 0.12
TEXT = altair.value("currentColor")  # colours of arms are too pale for letters
_LEGEND: dict[str, Any] = {"orient": "top", "labelLimit": 260, "columns": 4}
POINTS = altair.Legend(**_LEGEND, symbolSize=90, symbolStrokeWidth=0)
LINES = altair.Legend(**_LEGEND, symbolSize=400, symbolStrokeWidth=2, symbolType="stroke")
PLOT_LOOK = {
    **LOOK,
    "axis": {**LOOK["axis"], "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"},
    "legend": {**LOOK["legend"], "labelFontSize": 12},
    "header": {**LOOK["header"], "labelFontSize": 12},
    "text": {"fontSize": 11},
}


def rate_plot(rows: Sequence[Row], arms: Sequence[str], *, score: str, alt: str) -> Spec:
    """Scores against the learning rate, intervals, the chosen rate in a ring, edges in words.

    Args:
        rows: ``arm, panel, rate, place, mean, low, high, chosen, edge``; scores in percent,
            ``place`` the rate moved a little so that intervals do not hide each other, ``edge``
            *low*, *high* or empty.
        arms: in their order.
        score: what the scores are.
        alt: what the chart shows, in words.
    """
    rates = sorted({row["rate"] for row in rows})
    axis = altair.Axis(format="~e", grid=False, labelOverlap=True, values=rates)
    scale = altair.Scale(type="log", nice=False, domain=[rates[0] / 1.25, rates[-1] * 1.25])
    x = altair.X("place:Q", scale=scale, axis=axis, title="learning rate (log scale)")
    base = _over(rows).encode(x=x, color=_colour(arms, POINTS))
    title = f"{score}, %"
    y = altair.Y("mean:Q", title=title, scale=altair.Scale(zero=False))
    tooltip = _tooltip(
        arm="arm", rate="learning rate", mean="mean, %", low="low, %", high="high, %"
    )
    low = altair.Y("low:Q", title=title)
    ring = base.transform_filter("datum.chosen").mark_point(size=280, strokeWidth=2)
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(y=low, y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=_dash(arms, POINTS)),
        base.mark_point(filled=True, size=60).encode(y=y, shape=_shape(arms), tooltip=tooltip),
        ring.encode(y=y, tooltip=tooltip),
        *(_edge(base, side).encode(y=y) for side in sorted({row["edge"] for row in rows} - {""})),
    ]
    return _paneled(layers, rows, alt, arms)


def _edge(base: altair.Chart, side: str) -> altair.Chart:
    """A word beside a point at one end of the grid, on the side where there is room."""
    dx = 14 if side == "low" else -14
    found = base.transform_filter(f"datum.edge == '{side}'")
    align: Literal["left", "right"] = "left" if side == "low" else "right"
    named: altair.Chart = found.mark_text(text="edge of grid", align=align, dx=dx, dy=-12)
    return named.encode(color=TEXT)


def setting_plot(
    rows: Sequence[Row], references: Sequence[Row], arms: Sequence[str], *, titles: Row, alt: str
) -> Spec:
    """Means by setting with their intervals; references lie across, named at the right.

    Args:
        rows: ``arm, setting, mean, low, high, seeds``; scores in percent.
        references: ``name, mean``.
        arms: in their order.
        titles: of ``setting`` and ``score``.
        alt: what the chart shows, in words.
    """
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    across = altair.Axis(labelAngle=0, labelOverlap=True)
    base = _over(rows).encode(
        x=altair.X("setting:N", sort=settings, title=titles["setting"] or None, axis=across),
        xOffset=altair.XOffset("arm:N", sort=list(arms), scale=altair.Scale(paddingOuter=0.8)),
        color=_colour(arms, POINTS),
    )
    title = f"{titles['score']}, %"
    y = altair.Y("mean:Q", title=title)
    tooltip = _tooltip(
        arm="arm", setting="setting", seeds="seeds", mean="mean, %", low="low, %", high="high, %"
    )
    low = altair.Y("low:Q", title=title)
    layers = [
        *_references(references, rows, title),
        base.mark_rule(strokeWidth=2).encode(y=low, y2="high:Q"),
        base.mark_point(filled=True, size=90).encode(y=y, shape=_shape(arms), tooltip=tooltip),
    ]
    chart = altair.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    return _finished(chart, alt, arms)


def forest_plot(rows: Sequence[Row], dots: Sequence[Row], *, title: str, alt: str) -> Spec:
    """Differences with their intervals around 0, one line each; single seeds lie below.

    Args:
        rows: ``label, mean, low, high, words``, in points of percent.
        dots: ``label, seed, difference``.
        title: of the axis.
        alt: what the chart shows, in words.
    """
    labels = [row["label"] for row in rows]
    y = altair.Y("label:N", sort=labels, title=None).axis(
        labelLimit=220, labelPadding=10, ticks=False, domain=False
    )
    found, seeds = _over(rows).encode(y=y), _over(dots).encode(y=y)
    axis, scale = altair.Axis(tickCount=9), altair.Scale(padding=14)
    x = altair.X("mean:Q", title=title, axis=axis, scale=scale)
    low, single = (altair.X(field, title=title) for field in ("low:Q", "difference:Q"))
    tooltip = _tooltip(label="", mean="difference", low="interval from", high="to", words="verdict")
    ring = seeds.mark_point(size=28, yOffset=12, color="currentColor", opacity=0.6)
    layers = [
        _over([{"zero": 0}])
        .mark_rule(color="currentColor", strokeDash=[3, 3])
        .encode(x=altair.X("zero:Q", title=title)),
        found.mark_rule(color=COLOUR, strokeWidth=2.5).encode(x=low, x2="high:Q"),
        found.mark_point(shape="diamond", filled=True, size=110, color=COLOUR, opacity=1).encode(
            x=x, tooltip=tooltip
        ),
    ]
    if dots:
        ring_tip = _tooltip(label="", seed="seed", difference="difference")
        layers.append(ring.encode(x=single, tooltip=ring_tip))
    chart = altair.layer(*layers).properties(width=WIDTH, height=altair.Step(ROW_HEIGHT))
    return _finished(chart, alt, ())


def curve_plot(rows: Sequence[Row], arms: Sequence[str], *, alt: str) -> Spec:
    """Training loss over steps, a band from the lowest to the highest seed, and where stages start.

    Args:
        rows: ``kind, arm, panel, step`` and, of kind *point*, ``mean, low, high``, of kind *stage*,
            ``name`` and its place, from `with_places`.
        arms: in their order.
        alt: what the chart shows, in words.
    """
    _, height = panel_size(rows)
    names = range(rows_of(rows))
    step = altair.X("step:Q", title="step", scale=altair.Scale(nice=False))
    base = _over(rows).encode(x=step.axis(grid=False), color=_colour(arms, LINES))
    points = base.transform_filter("datum.kind == 'point'")
    stages = base.transform_filter("datum.kind == 'stage'")
    title = "loss, nats per token"
    # The names of stages stand above the curves.
    scale = altair.Scale(zero=False, range=[height, LINE_HEIGHT * len(names)])
    y = altair.Y("mean:Q", title=title, scale=scale)
    low = altair.Y("low:Q", title=title, scale=scale)
    tooltip = _tooltip(arm="arm", step="step", mean="mean", low="lowest", high="highest")
    layers = [
        points.mark_area(fillOpacity=0.2).encode(y=low, y2="high:Q"),
        stages.mark_rule(strokeWidth=1).encode(tooltip=_tooltip(arm="arm", name="stage")),
        points.mark_line(strokeWidth=2).encode(y=y, strokeDash=_dash(arms, LINES)),
        points.mark_circle(size=90, fillOpacity=0).encode(y=y, tooltip=tooltip),
        *(_stage_names(stages, row, side) for side in SIDES for row in names),
    ]
    return _paneled(layers, rows, alt, arms)


def _stage_names(stages: altair.Chart, row: int, side: str) -> altair.Chart:
    """Names of stages in one row above the curves, on one side of the stages' starts."""
    found = stages.transform_filter(f"datum.side == '{side}' && datum.row == {row}")
    align: Literal["left", "right"] = "left" if side == "right" else "right"
    dx = BESIDE if side == "right" else -BESIDE
    named: altair.Chart = found.mark_text(
        align=align, baseline="top", dx=dx, limit=LONGEST_LABEL
    ).encode(y=altair.value(2 + LINE_HEIGHT * row), text="label:N", color=TEXT)
    return named


def panel_size(rows: Sequence[Row]) -> tuple[int, int]:
    """Width and height of each panel in pixels."""
    one = len({row["panel"] for row in rows}) == 1
    return (WIDTH, HEIGHT) if one else (PANEL_WIDTH, HEIGHT * 2 // 3)


def _over(rows: Sequence[Row]) -> altair.Chart:
    return altair.Chart(altair.InlineData(values=[dict(row) for row in rows]))


def _colour(arms: Sequence[str], legend: altair.Legend) -> altair.Color:
    return altair.Color("arm:N", scale=_scale(arms, PALETTE), title=None, legend=legend)


def _shape(arms: Sequence[str]) -> altair.Shape:
    return altair.Shape("arm:N", scale=_scale(arms, SHAPES), title=None, legend=POINTS)


def _dash(arms: Sequence[str], legend: altair.Legend) -> altair.StrokeDash:
    return altair.StrokeDash("arm:N", scale=_scale(arms, DASHES), title=None, legend=legend)


def _scale(arms: Sequence[str], values: Sequence[Any]) -> altair.Scale:
    return altair.Scale(domain=list(arms), range=list(islice(cycle(values), len(arms))))


def _tooltip(**titles: str) -> list[altair.Tooltip]:
    """Fields and their titles; numbers with four digits."""
    words = {"arm", "setting", "label", "seed", "words", "name"}
    return [
        altair.Tooltip(f"{field}:N", title=title)
        if field in words
        else altair.Tooltip(f"{field}:Q", title=title, format=".4~g")
        for field, title in titles.items()
    ]


def _references(references: Sequence[Row], rows: Sequence[Row], title: str) -> list[altair.Chart]:
    """Lines across, and their names at the right, far enough apart to be read."""
    if not references:
        return []
    lines = _over(references).encode(
        y=altair.Y("mean:Q", title=title), tooltip=_tooltip(name="reference", mean="score, %")
    )
    names = _over(_apart(references, rows)).mark_text(
        align="left", limit=LONGEST_LABEL, color="currentColor"
    )
    return [
        lines.mark_rule(color="currentColor", strokeDash=[5, 4], opacity=0.7),
        names.encode(y=altair.Y("at:Q", title=title), x=altair.value(WIDTH + 6), text="name:N"),
    ]


def _apart(references: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """References with a place for the name, each at least a line above the last."""
    ends = [row[name] for row in rows for name in ("low", "mean", "high")]
    ends += [reference["mean"] for reference in references]
    ends = [end for end in ends if end is not None]
    line = (max(ends) - min(min(ends), 0)) * LINE_HEIGHT / HEIGHT
    found: list[Row] = []
    for reference in sorted(references, key=lambda reference: reference["mean"]):
        lowest = found[-1]["at"] + line if found else reference["mean"]
        found.append({**reference, "at": max(reference["mean"], lowest)})
    return found


def _paneled(
    layers: list[altair.Chart], rows: Sequence[Row], alt: str, arms: Sequence[str]
) -> Spec:
    """Layers of one set of rows, with a panel for each setting where there are several."""
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    width, height = panel_size(rows)
    one = altair.layer(*layers).properties(width=width, height=height)
    if len(panels) == 1:
        return _finished(one, alt, arms)
    facet = altair.Facet("panel:N", sort=panels, title=None)
    return _finished(one.facet(facet, columns=PANEL_COLUMNS), alt, arms)


def _finished(chart: altair.LayerChart | altair.FacetChart, alt: str, arms: Sequence[str]) -> Spec:
    """The specification; what belongs to an arm fades while another stands out."""
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
