"""Plain lines about a long command, for logs and pipes."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from schemabank.common.durations import duration
from schemabank.common.errors import printable
from schemabank.runs.progress.phase import Phase
from schemabank.runs.progress.protocol import RunState

if TYPE_CHECKING:  # the engine imports torch, and a screen needs none of it
    from schemabank.engine.cohort import RunStep

LINE_EVERY_S = 15.0


class LineReporter:
    """Plain lines for logs and pipes: one whenever a run ends, others now and then.

    Args:
        every_s: least time between two lines about a phase under way.
    """

    def __init__(self, *, every_s: float = LINE_EVERY_S) -> None:
        self.every_s = every_s
        self._phase, self._spoke = Phase(0), 0.0
        self._titles: dict[str, str] = {}
        self._ended: set[str] = set()

    def note(self, text: str) -> None:
        """Say one line."""
        sys.stderr.write(printable(text, keep="\n") + "\n")
        sys.stderr.flush()

    def start(self, title: str, total: int) -> None:
        """Begin a phase."""
        self._phase = Phase(total, title)
        self._spoke = self._phase.began

    def advance(self, units: int, detail: str) -> None:
        """Speak if the last line is old enough."""
        now = time.monotonic()
        self._phase.advance(units, now, detail)
        if now - self._spoke >= self.every_s:
            self._spoke = now
            self._say_phase(self._time_left(now))

    def finish(self) -> None:
        """Say how the phase ended."""
        self._say_phase(f"{time.monotonic() - self._phase.began:.0f} s")

    def runs(self, titles: Mapping[str, str]) -> None:
        """Remember what the runs are called."""
        self._titles.update(titles)

    def run_steps(self, steps: "Sequence[RunStep]") -> None:
        """Say nothing: a line about a phase is about all its runs."""

    def run_state(self, run: str, state: RunState, detail: str = "") -> None:
        """Say one line when a run ends; for a reused run there was a note already."""
        if state not in {"finished", "reused", "failed"}:
            return
        self._ended.add(run)
        if state != "reused":
            count = f"{len(self._ended)} of {len(self._titles)} runs"
            parts = [f"{self._titles[run]}: {state}", " ".join(detail.split()), count]
            self.note(", ".join(part for part in parts if part))

    def _time_left(self, now: float) -> str:
        left_s = self._phase.left_s(now)
        if left_s is None:
            return f"{now - self._phase.began:.0f} s so far"
        return f"{duration(left_s)} left"

    def _say_phase(self, end: str) -> None:
        phase = self._phase
        parts = [f"{phase.title}: {phase.done}/{phase.total}", phase.detail, end]
        self.note(", ".join(p for p in parts if p))
