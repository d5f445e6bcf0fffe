"""Progress on stderr: bars on a terminal, plain lines everywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class Reporter(Protocol):
    """Where a long command says what it does."""

    def note(self, text: str) -> None:
        """Say one line."""

    def start(self, title: str, total: int) -> None:
        """Begin a phase of ``total`` units."""

    def advance(self, units: int, detail: str) -> None:
        """Report progress within the phase."""

    def finish(self) -> None:
        """End the phase."""


class LineReporter:
    """Plain lines, at most one every ``every_s`` seconds, for logs and pipes."""

    def __init__(self, *, every_s: float = LINE_EVERY_S) -> None:
        self.every_s = every_s
        self._title, self._total, self._done, self._detail = "", 0, 0, ""
        self._began = self._spoke = 0.0

    def note(self, text: str) -> None:
        """Say one line."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def start(self, title: str, total: int) -> None:
        """Begin a phase."""
        self._title, self._total, self._done, self._detail = title, total, 0, ""
        self._began = self._spoke = time.monotonic()

    def advance(self, units: int, detail: str) -> None:
        """Speak if the last line is old enough."""
        self._done += units
        self._detail = detail
        now = time.monotonic()
        if now - self._spoke >= self.every_s:
            self._spoke = now
            self._say(self._left(now - self._began))

    def _left(self, elapsed_s: float) -> str:
        if self._done == 0:
            return f"{elapsed_s:.0f} s so far"
        return f"{elapsed_s / self._done * (self._total - self._done):.0f} s left"

    def finish(self) -> None:
        """Say how the phase ended."""
        self._say(f"{time.monotonic() - self._began:.0f} s")

    def _say(self, end: str) -> None:
        parts = [f"{self._title}: {self._done}/{self._total}", self._detail, end]
        self.note(", ".join(p for p in parts if p))


class BarReporter:
    """A rich progress bar for every phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def start(self, title: str, total: int) -> None:
        """Show a new bar."""
        self._task = self._progress.add_task(title, total=total, detail="")

    def advance(self, units: int, detail: str) -> None:
        """Move the bar."""
        assert self._task is not None
        self._progress.update(self._task, advance=units, detail=detail)

    def finish(self) -> None:
        """Leave the finished bar on the screen."""
        self._task = None


@contextmanager
def reporter() -> Iterator[Reporter]:
    """Choose bars or lines by what stderr is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineReporter()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        yield BarReporter(progress)
