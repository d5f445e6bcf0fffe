"""A cohort's optimizers: one for each group of weights, with what its runs ask of them."""

from collections.abc import Mapping, Sequence

from schemabank.engine.muon import Muon
from schemabank.engine.optim import AdamWSettings, SlotAdamW
from schemabank.engine.run import Run
from schemabank.engine.slots import Slot
from schemabank.engine.stack import AdapterStack, rank_of, slices_of


def new_optimizers(
    stack: AdapterStack, slots: Sequence[Slot], settings: AdamWSettings, *, compiled: bool
) -> dict[str, SlotAdamW]:
    """Return an optimizer for each group of weights.

    Only the adapters' keeps a mean over the steps, slices or what Muon needs, and only where some
    run asks for it: the others shall cost nothing.

    Args:
        stack: with the weights.
        slots: the progress of all runs of the cohort.
        settings: columns that all optimizers read.
        compiled: whether updates are fused.
    """
    lora, runs = stack.lora, [slot.run for slot in slots]
    averages = any(slot.is_averaged for slot in slots)
    most = max((slices_of(run.method.settings) for run in runs), default=1)
    muon = any(run.train.optimizer == "muon" for run in runs)
    found = {}
    for name, group in stack.groups.items():
        of_adapters = name in lora.groups
        found[name] = SlotAdamW(
            group.weights,
            settings,
            rounded=group.rounded,
            faster=group.faster,
            averages=averages and of_adapters,
            slices=lora.new_slices(most) if most > 1 and of_adapters else None,
            muon=Muon(group, num_maps=lora.room.count, compiled=compiled)
            if muon and of_adapters
            else None,
            compiled=compiled,
        )
    return found


def begin_run(
    optimizers: Mapping[str, SlotAdamW], settings: AdamWSettings, index: int, run: Run
) -> None:
    """Give a slot the state of new optimizers, and a run's settings of them."""
    train, rank = run.train, rank_of(run.method.settings, run.lora)
    for optimizer in optimizers.values():
        optimizer.reset(index)
        if optimizer.slices is not None:
            count = slices_of(run.method.settings)
            optimizer.slices.configure(index, rank=rank, count=count)
        if optimizer.muon is not None:
            optimizer.muon.seat(index, rank=rank, chosen=train.optimizer == "muon")
    settings.beta1[index] = train.adam_beta1
    settings.beta2[index] = train.adam_beta2
    settings.epsilon[index] = train.adam_epsilon
    settings.weight_decay[index] = train.weight_decay
    settings.ratio[index] = train.loraplus_lr_ratio


def use_rank(optimizers: Mapping[str, SlotAdamW], index: int, rank: int) -> None:
    """Tell what depends on a slot's rank that its adapters have been reduced to this one."""
    for optimizer in optimizers.values():
        if optimizer.muon is not None:
            optimizer.muon.ranks[index] = rank
