"""Figures as files: SVG that follows a page's light or dark style, and PNG for print.

Charts are Vega-Lite specifications made with altair and drawn by vl-convert, without a browser.
Both are optional, so the commands ask for them before they compute anything.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemabank.report import altair

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
# No SVG can hold what is not here: vl-convert ends the whole process on one such character.
# Ends of lines break Vega's expressions, marks of direction would turn the text around them.
DRAWN = (
    r"\t\n\r\x20-\x7e\x85\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff"
)
NOT_DRAWN = re.compile(f"[^{DRAWN}]")
# Vega-Lite writes titles of fields into expressions, and escapes no backslash and no line's end.
TITLED = str.maketrans(
    {"\\": "\N{SET MINUS}", '"': "\N{RIGHT DOUBLE QUOTATION MARK}"} | dict.fromkeys("\n\r", " ")
)
_TEXT = {"labelColor": "currentColor", "titleColor": "currentColor", "labelLimit": LONGEST_LABEL}
LOOK: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "axis": {
        **_TEXT,
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
    },
    "legend": _TEXT,
    "header": _TEXT,
    "title": {"color": "currentColor", "anchor": "start", "subtitleColor": "currentColor"},
    "view": {"stroke": None},
}

Spec = dict[str, Any]
Datum = Mapping[str, Any]  # a row of the data of a chart


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map: its place, its value, and the panel that it is in."""

    x: str
    y: str
    value: float
    panel: str


def heat_map(
    cells: Sequence[Cell], *, x_title: str, y_title: str, value_title: str, title: str
) -> Spec:
    """A heat map whose cells are the stronger in colour, the larger the value; 0 is the page.

    Args:
        cells: in the order of their rows, columns and panels, which stand below each other.
        x_title: what stands across.
        y_title: what stands below each other.
        value_title: what the colour means.
        title: of the figure.
    """
    data = altair.InlineData(values=[asdict(cell) for cell in cells])
    across = altair.Axis(labelAngle=0, labelOverlap=True)
    place = altair.Chart(data).encode(
        x=altair.X("x:O", sort=None, axis=across, title=x_title),
        y=altair.Y("y:O", sort=None, title=y_title),
    )
    grid = place.mark_rect(
        aria=False, fill=None, stroke="currentColor", strokeWidth=0.3, strokeOpacity=0.3
    )
    strength = altair.Opacity(
        "value:Q",
        scale=altair.Scale(range=[0, 1], domainMin=0),
        legend=altair.Legend(format=".2"),
        title=value_title,
    )
    tooltip = [
        altair.Tooltip("x:O", title=x_title),
        altair.Tooltip("y:O", title=y_title),
        altair.Tooltip("value:Q", title=value_title, format=".3f"),
    ]
    filled = place.mark_rect(aria=False, color=COLOUR).encode(opacity=strength, tooltip=tooltip)
    chart = altair.layer(filled, grid).properties(width=altair.Step(16), height=altair.Step(16))
    panels = altair.Row("panel:N", sort=None, title=None)
    rows = chart.facet(row=panels, title=title).resolve_scale(y="independent")
    return dict(rows.configure(**LOOK).to_dict())


def write_figure(path: Path, spec: Spec) -> None:
    """Write ``path`` as SVG and PNG; its suffix is added."""
    path.with_name(f"{path.name}.svg").write_text(styled_svg(spec), encoding="utf-8")
    import vl_convert  # noqa: PLC0415 -- optional, as in the other functions here

    printed = _with_ink(drawable(spec))
    png = vl_convert.vegalite_to_png(printed, scale=PRINT_SCALE)
    path.with_name(f"{path.name}.png").write_bytes(png)


def styled_svg(spec: Spec) -> str:
    """Return the drawing as a file of its own, whose ink follows a page's light or dark style."""
    head, end, rest = svg(spec).partition(">")
    return head + end + STYLE + rest


def svg(spec: Spec) -> str:
    """Return the drawing as an SVG element whose ink is the text colour around it."""
    import vl_convert  # noqa: PLC0415

    return str(vl_convert.vegalite_to_svg(drawable(spec)))


def drawable(spec: Spec) -> Spec:
    """Return the figure with other signs for those that no drawing, or no title, can hold."""
    found = _mapped(spec, lambda text: NOT_DRAWN.sub("\N{REPLACEMENT CHARACTER}", text))
    return dict(_with_plain_titles(found))


def _with_plain_titles(value: Any) -> Any:  # noqa: ANN401 -- any JSON
    """A copy of JSON in which the titles of fields cannot end the text that they become part of."""
    if isinstance(value, list):
        return [_with_plain_titles(item) for item in value]
    if not isinstance(value, dict):
        return value
    copied = {key: _with_plain_titles(item) for key, item in value.items()}
    if "field" in copied and isinstance(copied.get("title"), str):
        copied["title"] = copied["title"].translate(TITLED)
    return copied


def _with_ink(spec: Spec) -> Spec:
    """The figure on white: a PNG knows no page."""
    inked = _mapped(spec, lambda text: INK if text == "currentColor" else text)
    return {**inked, "background": "white"}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 -- any JSON
    """A copy of JSON with every text but the keys changed."""
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
