"""A picture of boxes on floors, and arrows between them, as SVG.

Boxes of a floor stand in the order in which arrows cross least, by the mean place of what they
point at (Sugiyama's method). An arrow over several floors bends around the boxes between.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from statistics import mean

Arrows = Mapping[str, Sequence[str]]  # from a box to boxes on lower floors
Floors = Sequence[Sequence[str]]  # from the top

WIDTH, HEIGHT = 92, 30  # of a box
STRIDE, RISE = 112, 72  # from box to box, and from floor to floor
MARGIN = 12
SWEEPS = 12  # over the floors, up and down
STYLE = (
    "svg{color:#1f2328}@media (prefers-color-scheme:dark){svg{color:#e6edf3}}"
    "@media print{svg{color:#000}}"
)
HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0,0L8,4L0,8Z" fill="currentColor"/></marker>'
)


def drawn(floors: Floors, arrows: Arrows, *, title: str) -> str:
    """Draw the boxes of every floor, with their names in them, and the arrows.

    Args:
        floors: names of boxes.
        arrows: from a box to those below it.
        title: what the picture shows, for those who hear it.
    """
    chains = _chains(floors, arrows)
    places = _places(_ordered(floors, chains))
    width = max(x for x, _ in places.values()) + WIDTH / 2 + MARGIN
    height = len(floors) * RISE - RISE + HEIGHT + 2 * MARGIN
    boxes = [_box(name, *places[name]) for names in floors for name in names]
    lines = [_arrow([places[point] for point in chain]) for chain in chains]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
            f'viewBox="0 0 {width:.0f} {height}" role="img">',
            f"<title>{escape(title)}</title><style>{STYLE}</style><defs>{HEAD}</defs>",
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


def _chains(floors: Floors, arrows: Arrows) -> list[list[str]]:
    """Every arrow as the points that it passes, one a floor; a point between has no box."""
    level = {name: height for height, names in enumerate(floors) for name in names}
    return [
        [name, *(f"{name} {other} {at}" for at in range(level[name] + 1, level[other])), other]
        for name, others in arrows.items()
        for other in others
    ]


def _ordered(floors: Floors, chains: Sequence[Sequence[str]]) -> list[list[str]]:
    """The boxes and points of every floor, in the order in which arrows cross least."""
    level = {name: height for height, names in enumerate(floors) for name in names}
    rows = [[*names] for names in floors]
    near: dict[str, list[str]] = {}
    for chain in chains:
        for height, point in enumerate(chain[1:-1], start=level[chain[0]] + 1):
            rows[height].append(point)
        for upper, lower in pairwise(chain):
            near.setdefault(upper, []).append(lower)
            near.setdefault(lower, []).append(upper)
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            at = {name: x for name, (x, _) in _places(rows).items()}
            row.sort(key=lambda name: mean(at[n] for n in near.get(name, [name])))
    return rows


def _places(rows: Sequence[Sequence[str]]) -> dict[str, tuple[float, float]]:
    """The middle of every box and point; floors are centred."""
    widest = max(map(len, rows)) * STRIDE
    return {
        name: (
            MARGIN + (widest - (len(row) - 1) * STRIDE + WIDTH - STRIDE) / 2 + index * STRIDE,
            MARGIN + HEIGHT / 2 + height * RISE,
        )
        for height, row in enumerate(rows)
        for index, name in enumerate(row)
    }


def _box(name: str, x: float, y: float) -> str:
    shape = f'x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="4"'
    font = 'font-family="system-ui, \'DejaVu Sans\', sans-serif" font-size="13"'
    return (
        f'<rect {shape} fill="none" stroke="currentColor"/><text x="{x:g}" y="{y + 4.5:g}" '
        f'text-anchor="middle" {font} fill="currentColor">{escape(name)}</text>'
    )


def _arrow(points: Sequence[tuple[float, float]]) -> str:
    """From the bottom of the first box over the points between to the top of the last one."""
    (x, y), *_ = points
    path = f"M{x:g},{y + HEIGHT / 2:g}"
    for before, after in pairwise(points):
        top, bottom = before[1] + HEIGHT / 2, after[1] - HEIGHT / 2
        middle = (top + bottom) / 2
        path += f"C{before[0]:g},{middle:g} {after[0]:g},{middle:g} {after[0]:g},{bottom:g}"
        path += f"L{after[0]:g},{after[1] + HEIGHT / 2:g}" if after is not points[-1] else ""
    return f'<path d="{path}" fill="none" stroke="currentColor" marker-end="url(#head)"/>'
