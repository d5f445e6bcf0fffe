"""Figures as files: SVG that follows a page's light or dark style, and PNG for print.

Charts are Vega-Lite specifications made with altair and drawn by vl-convert, without a browser.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair
import vl_convert

INK, COLOUR = "#1f2328", "#2f7fd0"
# Everything but the data is drawn in the ink, which a dark page turns light.
STYLE = (
    "<style>svg{color:#1f2328}"
    "@media (prefers-color-scheme:dark){svg{color:#e6edf3}}"
    "@media print{svg{color:#000}}</style>"
)
FONT = "system-ui, 'DejaVu Sans', sans-serif"
LONGEST_LABEL = 160  # pixels
PRINT_SCALE = 2.0

Spec = dict[str, Any]


def heat_map(
    cells: Sequence[Mapping[str, object]],
    *,
    x: str,
    y: str,
    value: str,
    title: str,
    panel: str | None = None,
) -> Spec:
    """A heat map whose cells are the stronger in colour, the larger the value; 0 is the page.

    Args:
        cells: rows of data.
        x: column across; its values stand in the order of the data.
        y: column down; likewise.
        value: column between 0 and the largest one, which sets the scale.
        title: of the figure.
        panel: column by which it is cut into panels below each other.
    """
    data = altair.InlineData(values=[dict(cell) for cell in cells])
    place = altair.Chart(data).encode(
        x=altair.X(f"{x}:O", sort=None, axis=altair.Axis(labelAngle=0, labelOverlap=True)),
        y=altair.Y(f"{y}:O", sort=None),
    )
    grid = place.mark_rect(fill=None, stroke="currentColor", strokeWidth=0.3, strokeOpacity=0.3)
    strength = altair.Opacity(
        f"{value}:Q",
        scale=altair.Scale(range=[0, 1], domainMin=0),
        legend=altair.Legend(format=".2"),
    )
    filled = place.mark_rect(color=COLOUR).encode(
        opacity=strength,
        tooltip=[f"{x}:O", f"{y}:O", altair.Tooltip(f"{value}:Q", format=".3f")],
    )
    chart = altair.layer(filled, grid).properties(width=altair.Step(16), height=altair.Step(16))
    if panel is not None:
        chart = chart.facet(row=altair.Row(f"{panel}:N", sort=None, title=None), title=title)
        chart = chart.resolve_scale(y="independent")
    else:
        chart = chart.properties(title=title)
    return dict(chart.configure(**_LOOK).to_dict())


def write_figure(path: Path, spec: Spec) -> None:
    """Write ``path`` as SVG and PNG; its suffix is added."""
    svg = vl_convert.vegalite_to_svg(spec)
    head, end, rest = svg.partition(">")
    path.with_name(f"{path.name}.svg").write_text(head + end + STYLE + rest, encoding="utf-8")
    printed = _with_ink(spec)
    png = vl_convert.vegalite_to_png(printed, scale=PRINT_SCALE)
    path.with_name(f"{path.name}.png").write_bytes(png)


def _with_ink(spec: Spec) -> Spec:
    """The figure on white: a PNG knows no page."""

    def inked(value: Any) -> Any:  # noqa: ANN401 -- any JSON
        if isinstance(value, dict):
            return {key: inked(v) for key, v in value.items()}
        if isinstance(value, list):
            return [inked(v) for v in value]
        return INK if value == "currentColor" else value

    return {**inked(spec), "background": "white"}


_TEXT = {"labelColor": "currentColor", "titleColor": "currentColor", "labelLimit": LONGEST_LABEL}
_LOOK: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "axis": {**_TEXT, "domainColor": "currentColor", "tickColor": "currentColor"},
    "legend": _TEXT,
    "header": _TEXT,
    "title": {"color": "currentColor", "anchor": "start"},
    "view": {"stroke": None},
}
