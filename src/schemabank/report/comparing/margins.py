"""A margin: how large a difference may be and still not matter, and who stated it before."""

from dataclasses import dataclass

from schemabank import stats
from schemabank.common.errors import InputError

MOST_POINTS = 100


@dataclass(frozen=True)
class Margin:
    """A margin in points of percent, and where it was stated."""

    points: float
    declared_by: str


@dataclass(frozen=True)
class MarginJudged:
    """What the primary contrast says about a margin, and where that was stated."""

    declared_by: str
    verdict: stats.MarginVerdict


def stated_margin(points: float | None) -> Margin | None:
    """Return the margin of ``--margin``.

    Raises:
        InputError: it is not above 0, or above 100 points.
    """
    if points is None:
        return None
    if not 0 < points <= MOST_POINTS:
        raise InputError(
            f"--margin {points}: allowed are percentage points above 0 and up to {MOST_POINTS}: "
            "give the largest difference that does not matter, such as 1.0"
        )
    return Margin(points, "--margin")
