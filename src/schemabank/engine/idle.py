"""Parts of an adapter or a bank that a router hardly ever gives any weight, and that learn nothing.

What no token uses gets no gradient, and the optimizer's mean of gradients fades. So these means
tell which parts are idle: from time to time their norms are copied to the host while the next steps
run, and are looked at with the next copy. No step computes anything more, or waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from schemabank.engine.execute import Fetch
from schemabank.engine.optim import SlotAdamW
from schemabank.engine.part import Choice
from schemabank.engine.slots import Slot
from schemabank.engine.stack import AdapterStack

EVERY = 64  # steps of the cohort between two looks
TIMES = 3  # looks in a row at which a part must be idle
# A share of the largest norm in its layer. At a decay of 0.9 the mean of gradients is at it after
# 66 steps without any.
HARDLY_ANY = 1e-3


@dataclass(frozen=True)
class Neglected:
    """Parts of a run that are idle.

    Attributes:
        run: its name.
        step: at which they were seen.
        num_steps: how long they have been idle at least.
        kind: what the parts are called.
        mend: what helps.
        parts: their numbers by layer.
        num_all: how many parts of this kind the run has.
    """

    run: str
    step: int
    num_steps: int
    kind: str
    mend: str
    parts: Mapping[str, Sequence[int]]
    num_all: int

    @property
    def num_parts(self) -> int:
        """How many parts are idle."""
        return sum(map(len, self.parts.values()))


@dataclass(frozen=True)
class _Seat:
    """Where a run stood at a look: its last step, and how many parts every choice has."""

    slot: Slot
    step: int
    counts: Sequence[int]


@dataclass(frozen=True)
class _Look:
    """Norms on their way to the host, and the runs that had the slots."""

    norms: Fetch
    places: Mapping[int, _Seat]


@dataclass
class _Seen:
    """How often in a row parts of a run were idle in its stage, by choice and number."""

    slot: Slot
    stage: int = -1
    step: int = -1
    times: dict[tuple[int, int], int] = field(default_factory=dict)


class IdleParts:
    """Looks for idle parts in the slots of a stack.

    Args:
        stack: with the slots.
        optimizers: of the stack's weights, by group.
    """

    def __init__(self, stack: AdapterStack, optimizers: Mapping[str, SlotAdamW]) -> None:
        self._stack, self._optimizers = stack, optimizers
        self._choices: list[Choice] = [each for part in stack.parts for each in part.choices]
        self._ticks, self._pending = 0, list[_Look]()
        self._seen: dict[str, _Seen] = {}

    def look(self, seated: Mapping[int, Slot]) -> list[Neglected]:
        """Return what the look before found, if it is time for one; call it after every step.

        Args:
            seated: the runs in the slots.
        """
        self._ticks += 1
        if not self._choices or self._ticks % EVERY:
            return []
        found = [idle for look in self._pending for idle in self._read(look)]
        self._seen = {name: e for name, e in self._seen.items() if not e.slot.has_ended}
        places = {
            index: _Seat(slot, slot.step - 1, [choice.count(index) for choice in self._choices])
            for index, slot in seated.items()
            if slot.step > 0
        }
        self._pending = [_Look(Fetch(self._norms()), places)]
        return found

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """The norms of all parts' means of gradients, ``(slot, part)``."""
        groups = {choice.group for choice in self._choices}
        views = {n: self._stack.groups[n].views(self._optimizers[n].mean) for n in groups}
        return torch.cat([c.norms(views[c.group][c.parameter]) for c in self._choices], dim=1)

    def _read(self, look: _Look) -> list[Neglected]:
        rows, found = look.norms.get(), list[Neglected]()
        for index, place in look.places.items():
            if place.slot.failure is None:
                self._count(place, rows[index])
                found += self._found(place)
        return found

    def _count(self, place: _Seat, norms: Sequence[float]) -> None:
        """Count for every part of a run at how many looks in a row it was idle."""
        step, at = place.step, place.slot.course.step(place.step)
        seen = self._seen.setdefault(place.slot.run.name, _Seen(place.slot))
        if seen.stage != at.stage:  # whose optimizer is new
            seen.stage, seen.times = at.stage, {}
        elif seen.step == step:
            return
        seen.step, start = step, 0
        for number, choice in enumerate(self._choices):
            own = norms[start : start + place.counts[number]]
            start += choice.room
            most = max(own, default=0.0)
            # What a step does not train keeps its means, and where nothing is known nothing is new.
            if choice.group in at.trained and isfinite(most) and most > 0:
                for part, norm in enumerate(own):
                    times = seen.times.get((number, part), 0)
                    seen.times[number, part] = times + 1 if norm < HARDLY_ANY * most else 0

    def _found(self, place: _Seat) -> list[Neglected]:
        """What has been idle for long in a run, by kind of part."""
        name, found = place.slot.run.name, list[Neglected]()
        times = self._seen[name].times
        for kind, mend in dict.fromkeys((choice.kind, choice.mend) for choice in self._choices):
            own = [(n, c) for n, c in enumerate(self._choices) if c.kind == kind]
            parts = {
                choice.layer: [p for p in range(choice.room) if times.get((number, p), 0) >= TIMES]
                for number, choice in own
            }
            parts = {layer: numbers for layer, numbers in parts.items() if numbers}
            if parts:
                steps, num_all = (TIMES - 1) * EVERY, sum(place.counts[n] for n, _ in own)
                found.append(Neglected(name, place.step, steps, kind, mend, parts, num_all))
        return found
