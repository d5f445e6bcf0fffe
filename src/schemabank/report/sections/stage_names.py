"""Places for the names of stages in a learning curve, so that no two names overlap.

Names stand above the curves in rows: each in the highest row that has room from its stage's start
on. Only the drawing knows how wide letters are, so each counts as a wide one.
"""

from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import east_asian_width

from schemabank.report.figures import LONGEST_LABEL, Datum

LETTER, WIDE_LETTER = 6.6, 11.5  # pixels
GAP, BESIDE = 10, 3  # pixels between two names, and between a name and its line
SIDES = ("right", "left")
MOST_ROWS = 5  # of names above a curve


def with_places(rows: Sequence[Datum], width: float) -> list[dict[str, Any]]:
    """Return rows of a learning curve, with a place for the name of each stage.

    Args:
        rows: ``kind, arm, panel, step`` and more; of kind *stage* also ``name``.
        width: of a panel in pixels.

    Returns:
        The same; those of stages with ``label``, ``row`` from 0, and ``side``: whether the name
        stands *right* or *left* of the stage's line, or is *none*, since there is no room. Where
        the arms of a panel do not have the same stages, the label names the arm too.
    """
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    scale = width / max(last - first, 1)
    taken: dict[str, list[list[tuple[float, float]]]] = {}
    known: dict[tuple[str, int, str], tuple[int, str]] = {}
    found = [dict(row) for row in rows if row["kind"] != "stage"]
    for stage in _labelled([row for row in rows if row["kind"] == "stage"]):
        key = stage["panel"], stage["step"], stage["label"]
        if key not in known:
            lines = taken.setdefault(stage["panel"], [[] for _ in range(MOST_ROWS)])
            known[key] = _take_place(lines, scale * (stage["step"] - first), stage["label"], width)
        row, side = known[key]
        found.append({**stage, "row": row, "side": side})
    return found


def rows_of(rows: Sequence[Datum]) -> int:
    """Return how many rows of names there are."""
    return max((row["row"] + 1 for row in rows if row.get("side") in SIDES), default=0)


def _labelled(stages: Sequence[Datum]) -> Iterator[dict[str, Any]]:
    own: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for stage in stages:
        own.setdefault((stage["panel"], stage["arm"]), []).append((stage["step"], stage["name"]))
    for stage in stages:
        same = [found for (panel, _), found in own.items() if panel == stage["panel"]]
        alike = all(found == same[0] for found in same)
        name = stage["name"] if alike else f"{stage['name']} ({stage['arm']})"
        yield {**stage, "label": name}


def _take_place(
    rows: Sequence[list[tuple[float, float]]], at: float, label: str, width: float
) -> tuple[int, str]:
    """The first row with room beside a line, and on which side of it; the room is then taken."""
    length = min(LONGEST_LABEL, sum(map(_letter_width, label))) + GAP
    sides = {"right": (at, at + length), "left": (at - length, at)}
    for row, others in enumerate(rows):
        for side, (start, end) in sides.items():
            free = all(end <= low or high <= start for low, high in others)
            if free and start >= 0 and end <= width + GAP:
                others.append((start, end))
                return row, side
    return 0, "none"


def _letter_width(letter: str) -> float:
    return WIDE_LETTER if east_asian_width(letter) in "WF" else LETTER
