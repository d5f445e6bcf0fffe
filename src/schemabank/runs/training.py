"""The training of runs that share a cohort: logs, progress, and memory that runs out."""

import gc
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self, TextIO

import torch

from schemabank.common.failure import Failure, failure_of
from schemabank.common.waiting import waiting
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.lora import Maps
from schemabank.engine.run import TrainingData
from schemabank.engine.slots import Halted, Slot
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of
from schemabank.models.basemodel import BaseModel
from schemabank.runs.folder import METRICS
from schemabank.runs.forms import Items
from schemabank.runs.members import KeepStage, Member, stage_keeper, write_weights
from schemabank.runs.preflight import estimate
from schemabank.runs.prepare import engine_run
from schemabank.runs.progress import Reporter
from schemabank.runs.rescale import rescale
from schemabank.runs.trackers import Trackers
from schemabank.tasks import Item

MOST_NAMED = 4


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
    """

    base: BaseModel
    training: TrainingData | None
    items: Mapping[int, Items]
    validation: Sequence[Item]
    reporter: Reporter
    trackers: Trackers
    inputs: Mapping[str, str]

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
    place = _Place(planned, context, stage_keeper(members, context.base))
    cohort = _through_all_steps(members, context, place, slots=slots)
    stack = cohort.stack
    with ExitStack() as on_failure:
        on_failure.callback(stack.remove)
        cohort.free()
        for index, member in enumerate(members):
            member.fail(_end_of(cohort, index))
        for part in seated(members, stack, cohort):
            rescale(part, cohort, context.validation, context.reporter)
            for index, member in enumerate(part):
                member.write(partial(_write_end, stack, index, member.run, context.base))
        on_failure.pop_all()
    return cohort, stack


def seated(
    members: Sequence[Member], stack: AdapterStack, cohort: Cohort | None
) -> Iterator[Sequence[Member]]:
    """Put the trained runs into the slots, as many at a time as there are."""
    for first in range(0, len(members), stack.num_slots):
        part = members[first : first + stack.num_slots]
        if cohort is not None:
            cohort.seat([run_id(member.run) for member in part])
        yield part


def _write_end(
    stack: AdapterStack, slot: int, run: RunConfig, base: BaseModel, folder: Path
) -> None:
    write_weights(stack, slot, run, folder, base)


def _end_of(cohort: Cohort, index: int) -> Failure | None:
    """Return why a run failed in training, if it did."""
    slot = cohort.slots[index]
    weights = cohort.finished[slot.run.name].values()
    if slot.failure is None and not all(bool(row.isfinite().all()) for row in weights):
        return Failure("diverged", f"weights that are not finite after {slot.num_steps} steps")
    return slot.failure


def _through_all_steps(
    members: Sequence[Member], context: Context, place: "_Place", *, slots: int
) -> Cohort:
    """Train every run; where memory runs out, go on in half the slots.

    A run that fails, or does not fit even alone, says so in its slot's ``failure``.
    """
    runs = [member.run for member in members]
    cohort: Cohort | None = place.cohort(slots, partial(_new_cohort, runs, context))
    assert cohort is not None
    try:
        _announce(cohort, runs, context)
        paths = {run_id(member.run): member.claim.path / METRICS for member in members}
        with StepLogs(paths, cohort) as logs:
            while (lack := _log_steps(cohort, logs, context)) is not None:
                slots = _halved(cohort.stack.num_slots, context.reporter)
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
    context.reporter.finish()
    for run, slot in zip(runs, cohort.slots, strict=True):
        if slot.skipped and slot.failure is None:
            context.reporter.note(f"{run.arm} seed {run.seed}: {skips(slot)}")
    return cohort


def skips(slot: Slot) -> str:
    """Say how many steps of a run changed nothing."""
    return (
        f"{len(slot.skipped)} of {slot.num_steps} steps skipped, since their gradient was not "
        "finite"
    )


def build_stack(runs: Sequence[RunConfig], base: BaseModel, *, slots: int) -> AdapterStack:
    """Put slots on the base model, each with room for any of the runs and their methods."""
    methods = {run.arm: method_of(run) for run in runs}
    rank = max(methods[run.arm].rank(run) for run in runs)
    widest = runs[0].lora.model_copy(update={"r": rank})
    attach = [
        put_on
        for arm, method in methods.items()
        for put_on in method.attach([run for run in runs if run.arm == arm])
    ]
    stack = AdapterStack(
        base.model,
        lora=[widest] * slots,
        attach=attach,
        adapters=any(run.trains for run in runs),
        maps=_room_for([methods[run.arm].maps(run) for run in runs]),
        passes=max(run.passes for run in runs),
    )
    for slot, run in enumerate(runs[:slots]):
        stack.configure(slot, run.lora, method_of(run).settings(run))
    return stack


def _room_for(maps: Sequence[Maps]) -> Maps:
    """Return maps of which any of these are a part."""
    return Maps(
        count=max(each.count for each in maps),
        routed=any(each.routed for each in maps),
    )


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
    names, slots = names_of(runs), cohort.stack.num_slots
    expected = estimate(
        cohort.stack, cohort.data, cohort.steps_to_come, runs, validation=context.validation
    )
    at_once = f", {slots} at once" if slots < len(runs) else ""
    reporter.note(
        f"{names}: {cohort.num_steps} steps{at_once}, about {expected.time_s:.0f} s and "
        f"{expected.memory_gib:.1f} GiB"
    )
    reporter.start(f"train {names}", cohort.num_steps)


@dataclass(frozen=True)
class _Place:
    """Where cohorts train: on the base model, in slots with room for any of the planned runs."""

    planned: Sequence[RunConfig]
    context: Context
    keep_stage: KeepStage

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
            slots = _halved(slots, self.context.reporter)

    def _made(self, slots: int, make: Callable[[AdapterStack], Cohort]) -> Cohort:
        """Put a stack on the model, and a cohort in it; what fails leaves the model as it was."""
        with ExitStack() as on_failure:
            stack = build_stack(self.planned, self.context.base, slots=slots)
            on_failure.callback(stack.remove)
            cohort = make(stack)
            cohort.stage_ended = partial(self.keep_stage, stack)
            on_failure.pop_all()
        return cohort


def _new_cohort(runs: Sequence[RunConfig], context: Context, stack: AdapterStack) -> Cohort:
    """Return a cohort of runs that have not begun."""
    data = context.training
    assert data is not None
    with waiting("tagging the examples", context.reporter.note):
        engine_runs = [
            engine_run(run, data.examples, stack, data.tokenizer, name=run_id(run)) for run in runs
        ]
    return Cohort(stack, engine_runs, data, explain=context.reporter.note)


def _same_cohort(halted: Halted, context: Context, stack: AdapterStack) -> Cohort:
    """Return a cohort that goes on where another was halted."""
    assert context.training is not None
    runs = [slot.run for slot in halted.slots]
    explain = context.reporter.note
    return Cohort(stack, runs, context.training, explain=explain, halted=halted)


def _halved(slots: int, reporter: Reporter) -> int:
    """How many slots to go on with; 0 for a single one that does not fit."""
    if slots > 1:
        reporter.note(
            f"{slots} runs at once do not fit into the device's memory: going on with "
            f"{slots // 2}; no step is lost (engine.slots sets the number)"
        )
    return slots // 2


def _too_large(cohort: Cohort, error: torch.OutOfMemoryError) -> Failure:
    return Failure(
        "memory",
        f"train.batch_size is {cohort.data.schedule.batch_size}, but a step of a single run does "
        f"not fit into the device's memory: lower it or task.max_length ({error})",
    )


def _log_steps(cohort: Cohort, logs: "StepLogs", context: Context) -> torch.OutOfMemoryError | None:
    """Write one line a run and step, and report progress with the speed so far.

    Returns:
        ``None`` if all runs ended; otherwise how memory ran out.
    """
    began, num_tokens = time.monotonic(), 0
    try:
        with waiting("waiting for the next training step", context.reporter.note) as wait:
            for steps in cohort.steps():
                wait.goes_on()
                for step in steps:
                    logs.write(step)
                    num_tokens += step.num_tokens
                context.reporter.run_steps(steps)
                context.trackers.steps(steps)
                speed = num_tokens / (time.monotonic() - began)
                context.reporter.advance(1, _detail(steps, speed))
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)  # whose frames hold the tensors that did not fit
    return None


class StepLogs:
    """``metrics.jsonl`` of every run: one line a step. A run whose log cannot be written fails.

    Args:
        paths: by the run's id; a file begins with the run's first step.
        cohort: whose runs they are; their slots stay the same when it is halted and resumed.
    """

    def __init__(self, paths: Mapping[str, Path], cohort: Cohort) -> None:
        self._paths, self._files = paths, dict[str, TextIO]()
        self._lost: set[str] = set()
        self._slots = {slot.run.name: slot for slot in cohort.slots}

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close all files; what still waits to be written may fail now."""
        for name, file in self._files.items():
            try:
                file.close()
            except OSError as error:
                self._lose(name, error)

    def write(self, step: RunStep) -> None:
        """Write a step's line, but for a run that has lost its log."""
        if step.run in self._lost:
            return
        try:
            if step.run not in self._files:
                self._files[step.run] = self._paths[step.run].open("w", encoding="utf-8")
            self._files[step.run].write(_json_line(step))
        except OSError as error:
            self._lose(step.run, error)

    def _lose(self, name: str, error: OSError) -> None:
        self._lost.add(name)
        slot = self._slots[name]
        slot.failure = slot.failure or failure_of(error)


def _json_line(step: RunStep) -> str:
    """One line of ``metrics.jsonl``; JSON has no NaN or infinity, so they become null."""
    row = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in _flat(step).items()
    }
    return json.dumps(row, allow_nan=False) + "\n"


def _flat(step: RunStep) -> dict[str, object]:
    row: dict[str, object] = asdict(step)
    del row["logged"]
    return row | {name: value for name, value in step.logged.items() if name not in row}


def _detail(steps: Sequence[RunStep], speed: float) -> str:
    if not steps:  # runs that were given up while the step was under way
        return f"{speed:,.0f} tokens/s"
    stages = "/".join(dict.fromkeys(step.stage for step in steps))
    loss = sum(step.loss for step in steps) / len(steps)
    return f"{speed:,.0f} tokens/s, stage {stages}, loss {loss:.3f}"
