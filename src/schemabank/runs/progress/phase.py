"""A phase of a long command, and how long its rest takes by the pace of its last minute.

The first units do not count, since steps are compiled then. The time of a later compilation, as for
the next stage, counts for a minute. If later steps are slower than those so far, the estimate is
too short until they begin.
"""

import time
from collections import deque

WINDOW_S = 60.0
SAMPLE_EVERY_S = 1.0


class Phase:
    """Units of work over time; those of the first call of :meth:`advance` do not set the pace.

    Args:
        total: units of the whole phase.
        title: what it is called.

    Attributes:
        done: units that have ended.
        detail: what the last of them said.
        began: when the phase began, by the monotonic clock.
        took_s: how long it took; ``None`` while it goes on.
    """

    def __init__(self, total: int, title: str = "") -> None:
        self.total, self.title = total, title
        self.done, self.detail = 0, ""
        self.began = time.monotonic()
        self.took_s: float | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def advance(self, units: int, now: float, detail: str = "") -> None:
        """Count units that have just ended."""
        self.done += units
        self.detail = detail
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((now, self.done))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()

    def left_s(self, now: float) -> float | None:
        """Return the seconds that the rest takes; ``None`` while there is nothing to go by."""
        if self.done >= self.total:
            return 0.0
        if not self._samples:
            return None
        began, before = self._samples[0]
        if self.done == before or now <= began:
            return None
        return (now - began) / (self.done - before) * (self.total - self.done)
