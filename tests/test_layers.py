"""The picture of boxes on floors: what is in it, and that no arrow runs through a box."""

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tools import BENCHMARKS, load_tool

layers: Any = load_tool(BENCHMARKS / "layers.py")
SVG = "{http://www.w3.org/2000/svg}"
FLOORS = (("top",), ("a", "b & c"), ("bottom",))
ARROWS = {"top": ["a", "b & c", "bottom"], "a": ["bottom"]}


def shapes(svg: str) -> tuple[list[tuple[float, ...]], list[list[tuple[float, float]]]]:
    """The boxes as x, y, width and height, and the arrows' points, without those of curves."""
    tree = ET.fromstring(svg)  # noqa: S314 -- our own
    boxes = [
        tuple(float(box.get(name, "")) for name in ("x", "y", "width", "height"))
        for box in tree.iter(f"{SVG}rect")
    ]
    paths = [path.get("d", "") for path in tree.findall(f"{SVG}path")]
    ends = [re.findall(r"(?:[ML]|C\S+ \S+ )([\d.]+),([\d.]+)", path) for path in paths]
    return boxes, [[(float(x), float(y)) for x, y in points] for points in ends]


def inside(box: tuple[float, ...], x: float, y: float) -> bool:
    left, top, width, height = box
    return left < x < left + width and top < y < top + height


def test_every_box_has_its_name_and_every_arrow_a_path() -> None:
    svg = layers.drawn(FLOORS, ARROWS, title="a <picture>")
    boxes, arrows = shapes(svg)
    assert len(boxes) == 4
    assert len(arrows) == 4
    assert re.findall(r"<text[^>]*>([^<]*)<", svg) == ["top", "a", "b &amp; c", "bottom"]
    assert "<title>a &lt;picture&gt;</title>" in svg
    assert layers.drawn(FLOORS, ARROWS, title="a <picture>") == svg


def test_an_arrow_begins_and_ends_at_boxes_and_bends_around_those_between() -> None:
    boxes, arrows = shapes(layers.drawn(FLOORS, ARROWS, title=""))
    for points in arrows:
        (x, y), (to_x, to_y) = points[0], points[-1]
        assert any(
            left + width / 2 == x and top + height == y for left, top, width, height in boxes
        )
        assert any(left + width / 2 == to_x and top == to_y for left, top, width, _ in boxes)
    (long,) = (points for points in arrows if len(points) > 2)
    for (x, y), (_, below) in pairwise(long[1:-1]):
        assert not any(inside(box, x, (y + below) / 2) for box in boxes)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_arrows_do_not_cross_where_they_need_not(names: tuple[str, str]) -> None:
    svg = layers.drawn((("x", "y"), names), {"x": ["a"], "y": ["b"]}, title="")
    _, ((first, first_end), (second, second_end)) = shapes(svg)
    assert (first < second) == (first_end < second_end)
