"""What runs have come to outside of their slots: those that wait, those that ended, and copies.

All of it lies on the CPU. Whatever a run's seed, settings and step tell is not part of it: batches,
dropout, learning rates and stages are computed again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from schemabank.common.failure import Failure
from schemabank.engine.average import averaged
from schemabank.engine.finished import Finished
from schemabank.engine.optim import SlotAdamW
from schemabank.engine.optimizers import use_rank
from schemabank.engine.slots import STATE, Carried, Slot, SlotState
from schemabank.engine.stack import AdapterStack, maps_of, rank_of


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one answer
class Standing:
    """Where a run stands between two of its steps: all that it takes to go on.

    Attributes:
        state: its progress.
        rows: its weights, moments and optimizer steps; its mean over the steps, if it has any.
        seat: the slot that it has; ``None``: it waits for one.
    """

    state: SlotState
    rows: Carried
    seat: int | None


class Keeping:
    """Takes runs out of the slots of a cohort, and puts them back.

    Args:
        stack: with the slots.
        optimizers: of the stack's weights, by group.
        finished: weights of the runs that have ended, by name.
        begun: what is kept of runs that wait for a slot, by name.
    """

    def __init__(
        self,
        stack: AdapterStack,
        optimizers: Mapping[str, SlotAdamW],
        *,
        finished: Finished,
        begun: dict[str, Carried],
    ) -> None:
        self._stack, self._optimizers = stack, optimizers
        self.finished, self.begun = finished, begun

    def ends_as(self, index: int, slot: Slot) -> dict[str, Tensor]:
        """Return the weights that the run in a slot would end as now, by group."""
        return self._ended(slot, self._rows(index, ended=True))

    def damage(self, index: int, step: int) -> Failure | None:
        """Return why a run cannot go on whose weights are not finite; waits for the device.

        It takes no memory there, which may have run out.

        Args:
            index: its slot.
            step: that showed it.
        """
        lost = {
            name: int((~group.weights[index].to("cpu").isfinite()).sum())
            for name, group in self._stack.groups.items()
        }
        if not any(lost.values()):
            return None
        named = ", ".join(
            f"{number} of {self._stack.groups[name].size} in {name}"
            for name, number in lost.items()
            if number
        )
        return Failure(
            "diverged",
            f"weights that are not finite at step {step} ({named}), so no loss can be computed: "
            "lower the learning rate",
        )

    def keep(self, index: int, slot: Slot) -> None:
        """Keep the weights of a run that leaves its slot, and its moments if it goes on later."""
        if not slot.has_ended:
            self.begun[slot.run.name] = self._rows(index, ended=False)
            return
        self.begun.pop(slot.run.name, None)
        chosen = slot.chosen if slot.failure is None else None
        slot.let_go()
        self.finished[slot.run.name] = chosen or self.ends_as(index, slot)

    def keep_failed(self, slots: Iterable[Slot]) -> None:
        """Keep the weights of runs that were given up while they waited for a slot."""
        for slot in slots:
            if slot.run.name in self.begun:
                self.finished[slot.run.name] = self._ended(slot, self.begun[slot.run.name])
        self.begun.clear()

    def put_back(self, index: int, slot: Slot) -> None:
        """Let a slot that is ready for a run stand where the run left off, if it has begun."""
        for name, rows in self.begun.get(slot.run.name, {}).items():
            # The mean comes last. A run that has none does not need the slot's.
            for state, row in zip(self._optimizers[name].state, rows, strict=False):
                state[index].copy_(row)
            self._stack.groups[name].publish()
        reduced_at = slot.course.reduced_at
        if reduced_at is not None and slot.step > reduced_at:
            self._stack.lora.use_rank(index, slot.run.lora.r)
            use_rank(self._optimizers, index, slot.run.lora.r)

    def standings(self, slots: Iterable[Slot], seated: Mapping[int, Slot]) -> dict[str, Standing]:
        """Copy what those of the runs have come to that have begun and go on, by name."""
        seats, found = {slot.run.name: index for index, slot in seated.items()}, {}
        for slot in slots:
            if slot.step > 0 and not slot.has_ended:
                name = slot.run.name
                seat = seats.get(name)
                rows = self.begun[name] if seat is None else self._rows(seat, ended=False)
                own = (
                    rows
                    if slot.is_averaged
                    else {n: each[: len(STATE)] for n, each in rows.items()}
                )
                found[name] = Standing(slot.state(), own, seat)
        return found

    def _rows(self, index: int, *, ended: bool) -> Carried:
        """What a slot's optimizers hold, or what a run's end needs of it, copied to the CPU."""
        return {
            name: [
                state[index].to("cpu", copy=True)
                for state in (optimizer.outcome if ended else optimizer.state)
            ]
            for name, optimizer in self._optimizers.items()
        }

    def _ended(self, slot: Slot, rows: Carried) -> dict[str, Tensor]:
        """The weights that a run ends as, by group, from its optimizers' rows on the CPU.

        The first of these rows are the weights, the last their mean over the steps, if any.

        Nothing is computed on the device, whose memory may have run out. A run that failed, or was
        stopped before its mean began, ends as its last weights.
        """
        run, lora = slot.run, self._stack.lora
        found = {name: states[0] for name, states in rows.items()}
        for name in lora.groups:
            if slot.ends_as_mean:
                end, *_, mean = rows[name]
                start = lora.first_weights(run.lora, run.seed)
                steps = slot.step
                found[name] = averaged(run.average, mean, start=start, end=end, num_steps=steps)
            found[name] = lora.folded(found[name], maps_of(run.method.settings).count)
            if rank_of(run.method.settings, run.lora) > run.lora.r:  # given up before its reduction
                found[name] = lora.reduced(found[name], run.lora.r)
        return found
