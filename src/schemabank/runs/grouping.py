"""Which runs share data and train together, in how many slots, and whether they can at all."""

from collections.abc import Iterator, Sequence

import torch

from schemabank.adapters.peftlayers import check_peft_layers
from schemabank.common.waiting import Note
from schemabank.config.settings import RunConfig
from schemabank.engine.planner import CohortPlan, best_slots, journey, plan_cohorts
from schemabank.engine.run import TrainingData
from schemabank.engine.targets import said_of
from schemabank.methods import method_of
from schemabank.methods.method import Setup
from schemabank.models.basemodel import BaseModel
from schemabank.runs.modelfit import check_distill, check_training
from schemabank.runs.preflight import slots_that_fit
from schemabank.runs.stacks import build_stack
from schemabank.runs.training import Context
from schemabank.tasks import Example


def sharing(runs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Part runs by model, data and evaluation, which a context holds once."""
    groups: dict[tuple[object, ...], list[RunConfig]] = {}
    for run in runs:
        asked = run.eval.model_copy(update={"few_shot": 0, "routing": "off"})
        groups.setdefault((*training_key(run), asked), []).append(run)
    return list(groups.values())


def training_key(run: RunConfig) -> tuple[object, ...]:
    """Return what training data depend on: runs with the same key may share them."""
    shapes = (run.train.batch_size, run.train.max_buckets, run.train.epoch_orders)
    return run.model, run.task, shapes


def planned_cohorts(
    runs: Sequence[RunConfig], context: Context, device: torch.device
) -> Iterator[tuple[CohortPlan, int]]:
    """Yield cohorts of runs that share a context, each with its number of slots."""
    data = context.training
    plans = plan_cohorts(runs, epoch=data.schedule.steps_per_epoch if data else 1)
    if len(plans) > 1:
        for number, plan in enumerate(plans, start=1):
            context.reporter.note(f"cohort {number} of {len(plans)}: {plan.reason}")
    for plan in plans:
        yield plan, num_slots(plan.runs, context, device)


def num_slots(runs: Sequence[RunConfig], context: Context, device: torch.device) -> int:
    """Return how many runs to train at once.

    On a GPU without a number in the settings: as many as fit, or fewer that are faster.
    """
    wanted = runs[0].engine.slots
    if isinstance(wanted, int):
        return min(wanted, len(runs))
    if device.type != "cuda" or context.training is None:
        return 1
    schedule = context.training.schedule
    stack = build_stack(runs, context.base, slots=1)
    try:
        fitting = slots_that_fit(stack, context.training, runs)
    finally:
        stack.remove()
    journeys = [journey(run, epoch=schedule.steps_per_epoch) for run in runs]
    return best_slots(journeys, cycle=schedule.cycle, at_most=fitting)


def check_runs(
    runs: Sequence[RunConfig],
    examples: Sequence[Example],
    base: BaseModel,
    training: TrainingData | None,
) -> None:
    """Find what a run's own settings ask of model or data that these do not have.

    Args:
        runs: that share a context.
        examples: for training; a run takes the first ``task.train_limit`` of them.
        base: the untouched base model.
        training: the same examples as tokens; ``None`` where no run trains.

    Raises:
        InputError: naming it.
    """
    checked: set[tuple[object, ...]] = set()
    for run in {_asks(run): run for run in runs}.values():
        if run.trains:
            assert training is not None
            places = (run.lora.target_modules, run.lora.layers_to_transform)
            if places not in checked:
                check_peft_layers(base.model, run.lora)
            checked.add(places)
            shown = method_of(run).prefixes(run, base.tokenizer)
            check_training(training, base.model, prefixes=shown)
            check_distill(run, training, base, prefixes=shown)
        stack = build_stack([run], base, slots=1)
        try:
            own = examples[: run.task.train_limit]
            method_of(run).check(run, Setup(own, stack, base.tokenizer))
        finally:
            stack.remove()


def tell_targets(runs: Sequence[RunConfig], base: BaseModel, note: Note) -> None:
    """Say which layers stand in for the default targets where the model has others."""
    asked = dict.fromkeys(run.lora for run in runs if run.trains)
    for sentence in dict.fromkeys(said_of(base.model, lora) for lora in asked):
        if sentence is not None:
            note(sentence)


def _asks(run: RunConfig) -> tuple[object, ...]:
    """The settings by which a run asks something of model or data."""
    return (
        run.arm,
        run.lora,
        run.bank,
        run.tags,
        run.average,
        run.distill,
        getattr(run, run.arm, None),
    )
