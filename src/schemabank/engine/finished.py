"""Weights of the runs of a cohort that have ended: in memory, or where they lie safely meanwhile.

A cohort may have hundreds of runs, which are evaluated when all have trained, a few at a time. So
whoever has written a run's weights may put them away: they are then read where they are asked for.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

Weights = dict[str, Tensor]
"""What a run has ended as, on the CPU: a row for each group."""


class Finished:
    """What runs have ended as, by name.

    Whatever is asked for that was put away is read, and what the reader raises comes through.
    :meth:`fetch` keeps it in memory for a while, so that it is read once.
    """

    def __init__(self) -> None:
        self._held: dict[str, Weights] = {}
        self._away: dict[str, Callable[[], Weights]] = {}

    def __getitem__(self, name: str) -> Weights:
        """Return a run's weights, or read them."""
        found = self._held.get(name)
        return self._away[name]() if found is None else found

    def __setitem__(self, name: str, weights: Weights) -> None:
        """Keep a run's weights in memory, in place of any others."""
        self._away.pop(name, None)
        self._held[name] = weights

    def __contains__(self, name: str) -> bool:
        """Whether a run has ended; nothing is read."""
        return name in self._held or name in self._away

    @property
    def held(self) -> Mapping[str, Weights]:
        """Those of the weights that are in memory, by the runs' names."""
        return self._held

    def put_away(self, name: str, read: Callable[[], Weights]) -> None:
        """Let go of a run's weights, which ``read`` returns to the bit."""
        self._away[name] = read
        self._held.pop(name, None)

    def fetch(self, name: str) -> None:
        """Hold a run's weights in memory until :meth:`let_go`."""
        self._held[name] = self[name]

    def let_go(self, name: str) -> None:
        """Hold a run's weights no longer, unless they are nowhere else."""
        if name in self._away:
            self._held.pop(name, None)

    def change(self, name: str, how: Callable[[Weights], Weights]) -> None:
        """Replace a run's weights by what ``how`` makes of them, now or whenever they are read."""
        if name in self._held:
            self._held[name] = how(self._held[name])
        if name in self._away:
            read = self._away[name]
            self._away[name] = lambda: how(read())
