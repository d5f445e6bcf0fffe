"""Slots on the base model for runs that train together, and the adapter that runs begin with."""

from collections.abc import Sequence

from schemabank.adapters.files import LoraTensors
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
    rank = max(methods[run.arm].rank(run) for run in runs)
    widest = runs[0].lora.model_copy(update={"r": rank})
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
        maps=_room_for([methods[run.arm].maps(run) for run in runs]),
        passes=max(run.passes for run in runs),
    )
    stack.start = start
    for slot, run in enumerate(runs[:slots]):
        stack.configure(slot, run.lora, method_of(run).settings(run))
    return stack


def _room_for(maps: Sequence[Maps]) -> Maps:
    """Return maps of which any of these are a part."""
    return Maps(
        count=max(each.count for each in maps),
        routed=any(each.routed for each in maps),
    )
