"""How far a round is: seen from what its units' records say, whoever did them."""

from schemabank.launch.rounds import Round, Unit
from schemabank.runs.progress import Reporter


class RoundProgress:
    """Follows a round, and shows how much of it is done.

    Args:
        shared: the round.
        reporter: where progress goes.
        num_workers: of this call.
    """

    def __init__(self, shared: Round, reporter: Reporter, num_workers: int) -> None:
        self.queue = shared.queue
        self._shared, self._reporter, self.num_workers = shared, reporter, num_workers
        self._left: dict[str, Unit] | None = None

    def done(self) -> list[Unit]:
        """Return the units that were done since the last call."""
        if self._left is None and (units := self._shared.units()) is not None:
            self._left = {unit.name: unit for unit in units}
            num_runs = sum(len(unit.runs) for unit in units)
            self._reporter.start(f"{num_runs} runs in {len(units)} parts", len(units))
            if 0 < len(units) < self.num_workers:
                self._reporter.note(
                    f"{self.num_workers - len(units)} of {self.num_workers} workers have nothing "
                    f"to do, since the runs come in {len(units)} parts: with fewer runs at once "
                    "(engine.slots) there are more"
                )
        begun = self.queue.begun() if self._left else set()
        found = [
            unit
            for name, unit in (self._left or {}).items()
            if name in begun and self.queue.record(name) is not None
        ]
        for unit in found:
            assert self._left is not None
            del self._left[unit.name]
        if found:
            workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
            self._reporter.advance(len(found), workers)
        return found

    def is_over(self) -> bool:
        """Whether all units are done; then another call may have removed the round."""
        return self._left == {} or not self._shared.folder.exists()

    def close(self) -> None:
        """End the phase on the screen, if it has begun."""
        if self._left is not None:
            self._reporter.finish()
