"""Progress of long commands: a live screen on a terminal, else lines.

Others report to a :class:`Reporter`; :func:`reporter` chooses one.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from rich.console import Console

from schemabank.runs.progress.lines import LineReporter
from schemabank.runs.progress.live import LiveReporter
from schemabank.runs.progress.protocol import SAVING, Reporter, RunState
from schemabank.runs.progress.silent import SilentReporter

__all__ = [
    "SAVING",
    "LineReporter",
    "LiveReporter",
    "Reporter",
    "RunState",
    "SilentReporter",
    "reporter",
]


@contextmanager
def reporter(*, quiet: bool = False) -> Iterator[Reporter]:
    """Choose a live screen or lines by what stderr is; quiet, nothing is shown."""
    console = Console(stderr=True)
    if quiet:
        yield SilentReporter()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield LineReporter()
    else:
        with closing(LiveReporter(console)) as screen:
            yield screen
