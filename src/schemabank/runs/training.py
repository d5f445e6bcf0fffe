"""The training of runs that share a cohort: progress, and memory that runs out."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from schemabank.adapters.files import LoraTensors
from schemabank.common.durations import duration
from schemabank.common.failure import Failure
from schemabank.common.waiting import waiting
from schemabank.config.settings import RunConfig
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.run import TrainingData
from schemabank.engine.slots import Halted, Slot
from schemabank.engine.softtargets import SoftTargets
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.checkpointing import Checkpoints
from schemabank.runs.forms import Items
from schemabank.runs.kept import made_with
from schemabank.runs.launched import BY_ITSELF, Launched
from schemabank.runs.locks import Tenure
from schemabank.runs.members import (
    KeepStage,
    Member,
    Trainee,
    stage_keeper,
    standing_of,
    trained_before_s,
    write_weights,
)
from schemabank.runs.preflight import estimate
from schemabank.runs.prepare import engine_run
from schemabank.runs.progress import Reporter
from schemabank.runs.rescale import Held, of_examples, of_items, rescale
from schemabank.runs.stacks import build_stack
from schemabank.runs.steplogs import KeepingLogs
from schemabank.runs.trackers import Trackers
from schemabank.runs.turns import seated
from schemabank.runs.watching import RunWatch, skips
from schemabank.tasks import Item

MOST_NAMED = 4
SLOTS = "engine.slots"  # what sets how many runs train at once, as the user knows it

T = TypeVar("T", bound=Trainee)


class StepLog(Protocol):
    """Where steps go, one at a time."""

    def write(self, step: RunStep) -> None:
        """Take note of a step."""


OpenLog = Callable[[Cohort], AbstractContextManager[StepLog]]
Keep = Callable[[AdapterStack, int, T], None]
"""Called with the stack, the slot that holds a run's last weights, and the run."""


@dataclass(frozen=True)
class Context:
    """What all runs of an experiment share.

    Attributes:
        base: the base model.
        training: training data; ``None`` where no run trains.
        items: evaluation items by the number of shots, in every form that a run asks for.
        validation: items by which adapters' scales are chosen, if a run has a choice.
        reporter: where progress goes.
        trackers: where runs are followed.
        inputs: digests of the base model, its tokenizer and the task's examples.
        start: an adapter that every run begins with, in place of freshly drawn weights.
        soft: what runs with teachers learn.
        slots_setting: what sets the number of slots, for messages.
        held_out: a program's validation examples, in place of ``validation``.
        tenure: by which this process may write the runs' folders, where several share the work.
        launched: how the call trains its runs.
    """

    base: BaseModel
    training: TrainingData | None
    items: Mapping[int, Items]
    validation: Sequence[Item]
    reporter: Reporter
    trackers: Trackers
    inputs: Mapping[str, str]
    start: LoraTensors | None = None
    soft: Mapping[RunConfig, SoftTargets] = field(default_factory=dict)
    slots_setting: str = SLOTS
    held_out: Sequence[Encoded] = ()
    tenure: Tenure | None = None
    launched: Launched = BY_ITSELF

    @property
    def held(self) -> Held:
        """On what losses are measured where a run has a choice of scales."""
        return of_examples(self.held_out) if self.held_out else of_items(self.validation)

    def asked_of(self, run: RunConfig) -> Items:
        """Return what a run is asked: the untouched model all forms, a trained one its own."""
        forms = self.items[run.evaluation().few_shot]
        return {"whole": forms["whole"]} if run.trains else forms


def train_runs(
    members: Sequence[Member], context: Context, *, slots: int, planned: Sequence[RunConfig]
) -> tuple[Cohort | None, AdapterStack]:
    """Train runs and write their weights; all are on disk before anything else can go wrong.

    Args:
        members: the runs with their folders, the longest first.
        context: what all runs share.
        slots: how many train at once; half of them where memory runs out.
        planned: these runs and those of their cohort that are finished already; the slots have
            room for any of them, so that no result depends on which are left.

    Returns:
        The cohort, without its programs, and its stack; no cohort where no run trains.
    """
    if not members[0].run.trains:
        return None, build_stack(planned, context.base, slots=slots)
    base = context.base
    began = time.monotonic() - trained_before_s(members)
    made = made_with(context.inputs, planned, base.model.device)

    def keep(stack: AdapterStack, slot: int, member: Member) -> None:
        member.end(partial(_write_end, stack, slot, member.run, base))

    with Checkpoints(members, made, began, context.reporter.note) as checkpoints:
        cohort = train_all(
            members,
            context,
            slots=slots,
            planned=planned,
            open_log=checkpoints.seeing(partial(KeepingLogs, members, made, began)),
            keep=keep,
            keep_stage=stage_keeper(members, base),
            follow=checkpoints.follow,
        )
    return cohort, cohort.stack


def train_all(
    trainees: Sequence[T],
    context: Context,
    *,
    slots: int,
    planned: Sequence[RunConfig],
    open_log: OpenLog,
    keep: Keep[T],
    keep_stage: KeepStage = lambda *_: None,
    follow: Callable[[Cohort], None] = lambda _: None,
) -> Cohort:
    """Train runs, choose their scales, and let their weights be kept.

    Args:
        trainees: the runs, the longest first; one that fails is told so.
        context: what all runs share.
        slots: how many train at once; half of them where memory runs out.
        planned: the slots have room for any of these runs.
        open_log: opens where a cohort's steps go.
        keep: takes the weights that a run ends as.
        keep_stage: takes the weights at the end of a stage.
        follow: called with every cohort before its first step.

    Returns:
        The cohort, without its programs; its stack is still on the model.
    """
    place = _Place(planned, context, keep_stage, follow)
    cohort = _through_all_steps(trainees, context, place, slots=slots, open_log=open_log)
    stack = cohort.stack
    with ExitStack() as on_failure:
        on_failure.callback(stack.remove)
        cohort.free()
        for index, trainee in enumerate(trainees):
            trainee.fail(_end_of(cohort, index))
        for part in seated(trainees, stack, cohort):
            setting = context.slots_setting
            rescale(part, cohort, context.held, context.reporter, slots_setting=setting)
            for index, trainee in enumerate(part):
                keep(stack, index, trainee)
        on_failure.pop_all()
    return cohort


def _write_end(
    stack: AdapterStack, slot: int, run: RunConfig, base: BaseModel, folder: Path
) -> None:
    write_weights(stack, slot, run, folder, base)


def _end_of(cohort: Cohort, index: int) -> Failure | None:
    """Return why a run failed in training, if it did."""
    slot = cohort.slots[index]
    # Those that are not in memory were looked at before they were put away.
    weights = cohort.finished.held.get(slot.run.name, {}).values()
    if slot.failure is None and not all(bool(row.isfinite().all()) for row in weights):
        return Failure("diverged", f"weights that are not finite after {slot.num_steps} steps")
    return slot.failure


def _through_all_steps(
    trainees: Sequence[Trainee],
    context: Context,
    place: "_Place",
    *,
    slots: int,
    open_log: OpenLog,
) -> Cohort:
    """Train every run; where memory runs out, go on in half the slots.

    A run that fails, or does not fit even alone, says so in its slot's ``failure``.
    """
    runs = [trainee.run for trainee in trainees]
    cohort: Cohort | None = place.cohort(slots, partial(_new_cohort, trainees, context))
    assert cohort is not None
    for trainee in trainees:
        trainee.let_go()
    try:
        num_steps = cohort.num_steps
        if num_steps:
            _announce(cohort, runs, context)
        with open_log(cohort) as log:
            while (lack := take_steps(cohort, log, context)) is not None:
                slots = _halved(cohort.stack.num_slots, context)
                if slots == 0:
                    cohort.give_up(_too_large(cohort, lack))
                halted = cohort.halt()
                cohort = None  # so that its memory can be freed
                cohort = place.cohort(max(1, slots), partial(_same_cohort, halted, context))
                context.reporter.start(f"train {names_of(runs)}", cohort.num_steps)
    except BaseException:
        if cohort is not None:
            cohort.stack.remove()
        raise
    if num_steps:
        context.reporter.finish()
    for run, slot in zip(runs, cohort.slots, strict=True):
        if slot.skipped and slot.failure is None:
            context.reporter.note(f"{run.arm} seed {run.seed}: {skips(slot)}")
    return cohort


def names_of(runs: Sequence[RunConfig]) -> str:
    """Name a few runs, count many or those of equal names."""
    names = [f"{run.arm} seed {run.seed}" for run in runs]
    if len(runs) <= MOST_NAMED and len(set(names)) == len(names):
        return ", ".join(names)
    counts = Counter(run.arm for run in runs)
    return f"{len(runs)} runs ({', '.join(f'{n} {arm}' for arm, n in counts.items())})"


def _announce(cohort: Cohort, runs: Sequence[RunConfig], context: Context) -> None:
    """Say what is to come."""
    reporter = context.reporter
    runs = [run for run, slot in zip(runs, cohort.slots, strict=True) if not slot.has_ended]
    names, slots = names_of(runs), cohort.stack.num_slots
    expected = estimate(
        cohort.stack, cohort.data, cohort.steps_to_come, runs, validation=context.validation
    )
    at_once = f", {slots} at once" if slots < len(runs) else ""
    aside = ", compiling aside" if cohort.stack.model.device.type == "cuda" else ""
    reporter.note(
        f"{names}: {cohort.num_steps} steps{at_once}, training about "
        f"{duration(expected.time_s)}{aside} and {expected.memory_gib:.1f} GiB"
    )
    reporter.start(f"train {names}", cohort.num_steps)


@dataclass(frozen=True)
class _Place:
    """Where cohorts train: on the base model, in slots with room for any of the planned runs."""

    planned: Sequence[RunConfig]
    context: Context
    keep_stage: KeepStage
    follow: Callable[[Cohort], None]

    def cohort(self, slots: int, make: Callable[[AdapterStack], Cohort]) -> Cohort:
        """Make a cohort of so many slots, or of half as often as there is no memory for them."""
        while True:
            try:
                return self._made(slots, make)
            except torch.OutOfMemoryError:
                if slots == 1:
                    raise
            gc.collect()  # layers refer to each other in cycles
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            slots = _halved(slots, self.context)

    def _made(self, slots: int, make: Callable[[AdapterStack], Cohort]) -> Cohort:
        """Put a stack on the model, and a cohort in it; what fails leaves the model as it was."""
        with ExitStack() as on_failure:
            base, start = self.context.base, self.context.start
            stack = build_stack(self.planned, base, slots=slots, start=start)
            on_failure.callback(stack.remove)
            cohort = make(stack)
            cohort.stage_ended = partial(self.keep_stage, stack)
            self.follow(cohort)
            on_failure.pop_all()
        return cohort


def _new_cohort(trainees: Sequence[Trainee], context: Context, stack: AdapterStack) -> Cohort:
    """Return a cohort of runs that have not begun, or have trained in an earlier call."""
    data = context.training
    assert data is not None
    with waiting("tagging the examples", context.reporter.note):
        engine_runs = [
            engine_run(
                each.run,
                data.examples,
                stack,
                data.tokenizer,
                name=each.name,
                soft=context.soft.get(each.run),
            )
            for each in trainees
        ]
    begin = standing_of(trainees, [Slot(run, data) for run in engine_runs], stack)
    return Cohort(stack, engine_runs, data, explain=context.reporter.note, halted=begin)


def _same_cohort(halted: Halted, context: Context, stack: AdapterStack) -> Cohort:
    """Return a cohort that goes on where another was halted."""
    assert context.training is not None
    runs = [slot.run for slot in halted.slots]
    explain = context.reporter.note
    return Cohort(stack, runs, context.training, explain=explain, halted=halted)


def _halved(slots: int, context: Context) -> int:
    """How many slots to go on with; 0 for a single one that does not fit."""
    if slots > 1:
        context.reporter.note(
            f"{slots} runs at once do not fit into the device's memory: going on with "
            f"{slots // 2}; no step is lost ({context.slots_setting} sets the number)"
        )
    return slots // 2


def _too_large(cohort: Cohort, error: torch.OutOfMemoryError) -> Failure:
    return Failure(
        "memory",
        f"train.batch_size is {cohort.data.schedule.batch_size}, but a step of a single run does "
        f"not fit into the device's memory: lower it or task.max_length ({error})",
    )


def take_steps(cohort: Cohort, log: StepLog, context: Context) -> torch.OutOfMemoryError | None:
    """Take all steps of a cohort, log each run's, and report progress with the speed so far.

    Returns:
        ``None`` if all runs ended; otherwise how memory ran out.
    """
    began, num_tokens = time.monotonic(), 0
    watch = RunWatch(cohort, context.reporter.note)
    try:
        with waiting("waiting for the next training step", context.reporter.note) as wait:
            for steps in cohort.steps():
                wait.goes_on()
                for step in steps:
                    log.write(step)
                    watch.see(step)
                    num_tokens += step.num_tokens
                watch.look()
                context.reporter.run_steps(steps)
                context.trackers.steps(steps)
                speed = num_tokens / (time.monotonic() - began)
                context.reporter.advance(1, _detail(steps, speed))
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)  # whose frames hold the tensors that did not fit
    return None


def _detail(steps: Sequence[RunStep], speed: float) -> str:
    if not steps:  # runs that were given up while the step was under way
        return f"{speed:,.0f} tokens/s"
    stages = "/".join(dict.fromkeys(step.stage for step in steps))
    loss = sum(step.loss for step in steps) / len(steps)
    return f"{speed:,.0f} tokens/s, stage {stages}, loss {loss:.3f}"
