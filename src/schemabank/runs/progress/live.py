"""All runs on one screen: what each is doing, and how far the command is.

A step only stores values. A thread of its own draws the screen from them a few times a second.
Every mapping that the thread reads is replaced as a whole and never changed in place. Only a
:class:`Phase` changes in place, and may be read meanwhile.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from schemabank.common.errors import printable
from schemabank.runs.progress.phase import Phase
from schemabank.runs.progress.protocol import RunState

if TYPE_CHECKING:  # the engine imports torch, and a screen needs none of it
    from schemabank.engine.cohort import RunStep

REFRESHES_PER_S = 4
BAR_WIDTH = 20
SPARE_LINES = 2  # of the terminal: the cursor's, and the one that a note has just scrolled
DETAIL_WIDTH = 24  # cells that a run's name leaves free, if the terminal is wide enough
STYLES: Mapping[str, str] = {
    "waiting": "dim",
    "training": "cyan",
    "evaluating": "cyan",
    "finished": "green",
    "reused": "green",
    "failed": "bold red",
}
ENDED = ("finished", "reused", "failed")
SHOWN_FIRST: Sequence[RunState] = (
    *("training", "evaluating", "failed", "waiting", "finished", "reused"),
)


@dataclass(frozen=True)
class _RunLine:
    title: str
    state: RunState = "waiting"
    detail: str = ""


class LiveReporter:
    """Shows phases, and runs if there are any; leaves the last picture on the screen.

    Args:
        console: of a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phases: tuple[Phase, ...] = ()
        self._rows: dict[str, _RunLine] = {}
        self._steps: dict[str, RunStep] = {}
        # What goes to stdout is the command's result, and may go into a pipe.
        self._live = Live(
            console=console,
            refresh_per_second=REFRESHES_PER_S,
            redirect_stdout=False,
            get_renderable=lambda: self,
        )

    def note(self, text: str) -> None:
        """Print above the screen."""
        self._console.print(printable(text, keep="\n"), highlight=False, markup=False)

    def start(self, title: str, total: int) -> None:
        """Show a phase; among runs, instead of the one before."""
        earlier = () if self._rows else self._phases
        self._phases = (*earlier, Phase(total, title))
        self._live.start()

    def advance(self, units: int, detail: str) -> None:
        """Move the phase's bar."""
        self._phases[-1].advance(units, time.monotonic(), detail)

    def finish(self) -> None:
        """Leave the finished phase on the screen."""
        phase = self._phases[-1]
        phase.took_s = time.monotonic() - phase.began

    def runs(self, titles: Mapping[str, str]) -> None:
        """Show a line for every run."""
        self._rows = {**self._rows, **{run: _RunLine(title) for run, title in titles.items()}}
        self._live.start()

    def run_steps(self, steps: "Sequence[RunStep]") -> None:
        """Store where the runs are; those that took no step wait for a slot."""
        if steps:
            self._steps = {step.run: step for step in steps}

    def run_state(self, run: str, state: RunState, detail: str = "") -> None:
        """Show what has become of a run."""
        self._steps = {name: step for name, step in self._steps.items() if name != run}
        row = replace(self._rows[run], state=state, detail=detail)
        self._rows = {**self._rows, run: row}

    def close(self) -> None:
        """Draw for the last time and give the terminal back."""
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pen = _Pen(options.max_width - 1, ascii_only=options.ascii_only)
        rows, steps = self._rows, self._steps
        shown = [_with_step(row, steps.get(run)) for run, row in rows.items()]
        lines = pen.overall(shown) if shown else []
        for phase in self._phases:
            lines += pen.phase(phase)
        room = console.size.height - SPARE_LINES - len(lines)
        yield from [*lines[: max(1, console.size.height - SPARE_LINES)], *pen.rows(shown, room)]


class _Pen:
    """Draws lines of a terminal that is so many cells wide."""

    def __init__(self, width: int, *, ascii_only: bool) -> None:
        self.width, self.ascii_only = width, ascii_only

    def overall(self, rows: Sequence[_RunLine]) -> list[Text]:
        """How many runs are done."""
        done = sum(row.state in ENDED for row in rows)
        return [self._line(("runs ", ""), *self._bar(done, len(rows)), (" done", ""))]

    def phase(self, phase: Phase) -> list[Text]:
        """A phase's name, and how far it is."""
        told = [_time_of(phase), phase.detail]
        end = "".join(f", {part}" for part in told if part)
        return [
            self._line((phase.title, "bold")),
            self._line(("     ", ""), *self._bar(phase.done, phase.total), (end, "")),
        ]

    def rows(self, rows: Sequence[_RunLine], room: int) -> list[Text]:
        """A line a run; without room for all, a line for the most important and one of counts."""
        if len(rows) <= room:
            return self._run_lines(rows)
        by_state = sorted(rows, key=lambda row: SHOWN_FIRST.index(row.state))
        shown = by_state[: max(0, room - 1)]
        counts = Counter(row.state for row in by_state[len(shown) :])
        told = ", ".join(f"{counts[state]} {state}" for state in SHOWN_FIRST if counts[state])
        return [*self._run_lines(shown), self._line((f"and {told}", "dim"))] if room > 0 else []

    def _run_lines(self, rows: Sequence[_RunLine]) -> list[Text]:
        widest = max((cell_len(self._safe_text(row.title)) for row in rows), default=0)
        states = max(map(len, STYLES))
        width = min(widest, max(8, self.width - states - DETAIL_WIDTH - 2))
        return [
            self._line(
                (self._cut(row.title, width), ""),
                (f" {row.state:<{states}} ", STYLES[row.state]),
                (row.detail, ""),
            )
            for row in rows
        ]

    def _bar(self, done: int, total: int) -> tuple[tuple[str, str], tuple[str, str]]:
        """Filled and empty marks differ in shape, for terminals without colours."""
        full, empty = ("#", ".") if self.ascii_only else ("━", "╌")
        filled = BAR_WIDTH * done // total if total else BAR_WIDTH
        return (full * filled, "cyan"), (empty * (BAR_WIDTH - filled) + f" {done:,}/{total:,}", "")

    def _line(self, *parts: tuple[str, str]) -> Text:
        """One line of parts with their styles, cut at the end where they are too long."""
        safe = ((self._safe_text(text), style) for text, style in parts)
        line = Text.assemble(*safe, no_wrap=True, overflow="crop")
        line.truncate(self.width, overflow="crop")
        return line

    def _cut(self, text: str, width: int) -> str:
        """A text in exactly so many cells; a longer one loses its middle."""
        text = self._safe_text(text)
        size = cell_len(text)
        if size <= width:
            return text + " " * (width - size)
        mark = "~" if self.ascii_only else "…"
        head = set_cell_size(text, (width - 1) // 2)
        tail = text[::-1]
        return head + mark + set_cell_size(tail, width - 1 - (width - 1) // 2)[::-1]

    def _safe_text(self, text: str) -> str:
        text = printable(text)
        return text.encode("ascii", "replace").decode() if self.ascii_only else text


def _time_of(phase: Phase) -> str:
    """The time that is left of a phase, or that it took."""
    if phase.took_s is not None:
        return f"{_clock(phase.took_s)} in all"
    left_s = phase.left_s(time.monotonic())
    return "" if left_s is None else f"{_clock(left_s)} left"


def _with_step(row: _RunLine, step: "RunStep | None") -> _RunLine:
    """A run with its step if it is training now; one that waits for a slot has none."""
    if step is None:
        return row
    count = f"{step.step + 1:>{len(str(step.num_steps))}}/{step.num_steps}"
    return replace(row, state="training", detail=f"{count} loss {step.loss:.3f} {step.stage}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
