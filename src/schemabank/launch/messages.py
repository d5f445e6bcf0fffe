"""What a worker tells the process that started it, a line of JSON each, and how that is shown."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from schemabank.runs.progress import Reporter, RunState

if TYPE_CHECKING:
    from schemabank.engine.cohort import RunStep

STEPS_EVERY_S = 0.25  # a screen is drawn no more often

Message = Mapping[str, Any]


class Sender:
    """A worker's reporter: tells what it is told on, but for phases, which are one process's.

    Args:
        pipe: where it tells; ``None`` for a worker to which nobody listens.

    Attributes:
        speaks: whether notes are told; all workers prepare the same, and one says so.
        holds: whether this worker still holds what it works on. If not, its runs end elsewhere.
    """

    def __init__(self, pipe: TextIO | None, *, speaks: bool) -> None:
        self.speaks = speaks
        self.holds: Callable[[], bool] = lambda: True
        self._pipe, self._lock, self._told_s = pipe, threading.Lock(), 0.0

    def send(self, **message: object) -> None:
        """Tell one thing; if nobody listens any more, the worker is about to be told to end."""
        if self._pipe is None:
            return
        line = json.dumps(message) + "\n"
        with suppress(BrokenPipeError), self._lock:
            self._pipe.write(line)
            self._pipe.flush()

    def note(self, text: str) -> None:
        """Tell one line."""
        if self.speaks:
            self.send(note=text)

    def start(self, title: str, total: int) -> None:
        """Begin a phase that is not shown."""

    def advance(self, units: int, detail: str) -> None:
        """Show no progress of a phase."""

    def finish(self) -> None:
        """End a phase that was not shown."""

    def runs(self, titles: Mapping[str, str]) -> None:
        """Name no runs: who listens knows them."""

    def run_steps(self, steps: "Sequence[RunStep]") -> None:
        """Tell where the runs are, a few times a second."""
        now = time.monotonic()
        if now - self._told_s >= STEPS_EVERY_S:
            self._told_s = now
            self.send(steps=[{**vars(step), "logged": {}} for step in steps])

    def run_state(self, run: str, state: RunState, detail: str = "") -> None:
        """Tell what has become of a run."""
        if self.holds():
            self.send(run=run, state=state, detail=detail)


class Screen:
    """Shows on one reporter what several workers tell.

    Attributes:
        told: ids of the runs whose end was told.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.told: set[str] = set()
        self._reporter = reporter
        self._steps: dict[int, Sequence[RunStep]] = {}

    def show(self, worker: int, message: Message) -> None:
        """Show what a worker tells."""
        from schemabank.engine.cohort import RunStep  # noqa: PLC0415 -- with it comes torch

        if "note" in message:
            self._reporter.note(message["note"])
        elif "steps" in message:
            self._steps[worker] = [RunStep(**step) for step in message["steps"]]
            self._reporter.run_steps([step for own in self._steps.values() for step in own])
        elif "state" in message:
            run, state = message["run"], message["state"]
            self.forget(worker, run)
            if state in {"finished", "failed"}:
                self.told.add(run)
            self._reporter.run_state(run, state, message["detail"])

    def forget(self, worker: int, run: str | None = None) -> None:
        """Leave out the steps of a worker that is gone, or of a run that trains no more."""
        if run is None:
            self._steps.pop(worker, None)
        elif worker in self._steps:
            self._steps[worker] = [step for step in self._steps[worker] if step.run != run]
