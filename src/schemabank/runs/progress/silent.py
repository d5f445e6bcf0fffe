"""Nothing at all about a long command, for Python programs that show their own progress."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from schemabank.runs.progress.protocol import RunState

if TYPE_CHECKING:  # the engine imports torch, and silence needs none of it
    from schemabank.engine.cohort import RunStep


class SilentReporter:
    """Shows nothing of what it is told."""

    def note(self, text: str) -> None:
        """Leave a line out."""

    def start(self, title: str, total: int) -> None:
        """Begin a phase that is not shown."""

    def advance(self, units: int, detail: str) -> None:
        """Show no progress."""

    def finish(self) -> None:
        """End a phase that was not shown."""

    def runs(self, titles: Mapping[str, str]) -> None:
        """Name runs that are not shown."""

    def run_steps(self, steps: "Sequence[RunStep]") -> None:
        """Show no steps."""

    def run_state(self, run: str, state: RunState, detail: str = "") -> None:
        """Show no state."""
