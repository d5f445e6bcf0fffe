"""What a long command reports while it runs, however it is shown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # the engine imports torch, and a screen needs none of it
    from schemabank.engine.cohort import RunStep

# A note; who started a process that says so lets it take its time.
SAVING = "saving where the runs stand, to end then; another signal ends at once"

RunState = Literal["waiting", "training", "evaluating", "finished", "reused", "failed"]


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

    def runs(self, titles: Mapping[str, str]) -> None:
        """Name runs that are to come, by their ids; others may follow later."""

    def run_steps(self, steps: "Sequence[RunStep]") -> None:
        """Take note of a step of every run that is training now; called at every step."""

    def run_state(self, run: str, state: RunState, detail: str = "") -> None:
        """Say what has become of a run that was named: its scores, or why it failed."""
