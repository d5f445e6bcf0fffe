"""How long something takes: measured, and in words."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

MINUTE_S, HOUR_S, DAY_S = 60, 60 * 60, 24 * 60 * 60
FEWEST = 2  # of a unit that are named; with fewer, the smaller unit says more


class Stopwatch:
    """Adds up how long things take.

    Attributes:
        took_s: all of them so far; of one that goes on, nothing yet.
    """

    def __init__(self) -> None:
        self.took_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add what takes place within, also if it fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.took_s += time.monotonic() - began


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are two: 90 s, 14 min, 5 h, 3 days."""
    for unit_s, name in ((DAY_S, "days"), (HOUR_S, "h"), (MINUTE_S, "min")):
        if seconds >= FEWEST * unit_s:
            return f"{seconds / unit_s:,.0f} {name}"
    return f"{seconds:.0f} s"
