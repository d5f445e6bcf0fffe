"""Slots on the base model for runs that train together, and the adapter that runs begin with."""

from collections.abc import Sequence

from schemabank.adapters.files import LoraTensors
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.engine.lora import Maps
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of
from schemabank.models.basemodel import BaseModel


class StartedStack(AdapterStack):
    """A stack whose runs may all begin with an adapter that is there already.

    Attributes:
        start: ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer; ``None``: runs
            begin with weights that are drawn from their seeds.
    """

    start: LoraTensors | None = None

    def initialise(self, slot: int, seed: int) -> None:
        """Give a slot the weights that a run begins with; what ``start`` lacks is drawn."""
        super().initialise(slot, seed)
        if self.start is not None:
            self.lora.load(slot, self.start)


def build_stack(
    runs: Sequence[RunConfig], base: BaseModel, *, slots: int, start: LoraTensors | None = None
) -> StartedStack:
    """Put slots on the base model, each with room for any of the runs and their methods.

    Args:
        runs: for which there is room.
        base: the model.
        slots: how many.
        start: an adapter that every run begins with; without it, freshly drawn weights.
    """
    methods = {run.arm: method_of(run) for run in runs}
    widest = runs[0].lora.model_copy(update={"r": _largest_rank(runs)})
    attach = [
        put_on
        for arm, method in methods.items()
        for put_on in method.attach([run for run in runs if run.arm == arm])
    ]
    stack = StartedStack(
        base.model,
        lora=[widest] * slots,
        attach=attach,
        adapters=any(run.trains for run in runs),
        maps=_room_for(runs),
        passes=max(run.passes for run in runs),
    )
    stack.start = start
    for slot, run in enumerate(runs[:slots]):
        stack.configure(slot, run.lora, method_of(run).settings(run))
    return stack


def room_of(runs: Sequence[RunConfig]) -> dict[str, object]:
    """Return what decides the room that a slot has for any of the runs, as JSON has it.

    In another room, the last bits of a run's weights may be others.
    """
    by_arm: dict[str, list[RunConfig]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    parts = {
        arm: method_of(own[0]).room(own) or sorted(map(run_id, own))
        for arm, own in sorted(by_arm.items())
        if method_of(own[0]).attach(own)
    }
    return {"rank": _largest_rank(runs), "maps": vars(_room_for(runs)), "parts": parts}


def _largest_rank(runs: Sequence[RunConfig]) -> int:
    return max(method_of(run).rank(run) for run in runs)


def _room_for(runs: Sequence[RunConfig]) -> Maps:
    """Return maps of which those of any of the runs are a part."""
    maps = [method_of(run).maps(run) for run in runs]
    return Maps(
        count=max(each.count for each in maps),
        routed=any(each.routed for each in maps),
    )
