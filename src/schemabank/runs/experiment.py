"""From a configuration to finished runs: prepare, train in cohorts, evaluate, write.

A single run is an experiment of one run in a cohort of one slot; there is no second path. Finished
runs are found by their configuration's hash and reused.
"""

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from schemabank.common.failure import FAILING, failure_to_write
from schemabank.common.waiting import waiting
from schemabank.config.file import run_id
from schemabank.config.naming import titles_of
from schemabank.config.settings import ExperimentConfig, ModelSettings, RunConfig
from schemabank.engine.compiling import compiling_measured
from schemabank.engine.run import TrainingData
from schemabank.models.basemodel import BaseModel
from schemabank.runs.beforehand import (
    check_packages,
    check_places,
    folders_of,
    known_outcomes,
)
from schemabank.runs.distill import TEACHERS, all_teachers, learned_from_teachers, untaught
from schemabank.runs.effects import idle_in_experiment, sentences
from schemabank.runs.finish import Took, finish_runs
from schemabank.runs.folder import forget_training, is_finished
from schemabank.runs.forms import Items
from schemabank.runs.grouping import (
    check_runs,
    planned_cohorts,
    sharing,
    tell_targets,
    training_key,
)
from schemabank.runs.inputs import DATA, check_all_clusters, data_digest
from schemabank.runs.loading import (
    announce_decoding,
    loaded_base,
    loaded_task,
    resolve_device,
    resolved,
)
from schemabank.runs.members import (
    Member,
    Outcome,
    tokens_before,
    trained_before_s,
)
from schemabank.runs.modelfit import check_items
from schemabank.runs.preflight import describe_data
from schemabank.runs.prepare import prompt_forms, task_training_data
from schemabank.runs.progress import Reporter
from schemabank.runs.rescale import validation_items
from schemabank.runs.resuming import (
    claimed_members,
    slots_to_go_on,
    still_taught,
    write_settings,
)
from schemabank.runs.trackers import Trackers, trackers_of
from schemabank.runs.training import Context, train_runs

CHECKING = "checking what the runs need"


@dataclass(frozen=True)
class Loaded:
    """Models and training data that are loaded already, for runs that are prepared one by one."""

    models: dict[ModelSettings, BaseModel] = field(default_factory=dict)
    training: dict[tuple[object, ...], TrainingData] = field(default_factory=dict)


@dataclass(frozen=True)
class CohortPart:
    """Runs that are trained at once.

    Attributes:
        runs: that are not finished.
        context: what they share.
        slots: how many train at the same time.
        planned: all runs of their cohort, also those that are finished or in another part: the
            slots have room for any of them, so that no result depends on how a cohort is parted.
    """

    runs: Sequence[RunConfig]
    context: Context
    slots: int
    planned: Sequence[RunConfig]


def run_experiment(experiment: ExperimentConfig, out: Path, reporter: Reporter) -> list[Outcome]:
    """Train and evaluate every run of an experiment that is not finished yet.

    Args:
        experiment: the configuration.
        out: folder of the runs, one folder a run inside.
        reporter: where progress goes.

    Returns:
        One outcome a run, in the configuration's order.

    Raises:
        InputError: something in the configuration cannot be had; nothing was trained.
    """
    for sentence in sentences(idle_in_experiment(experiment)):
        reporter.note(sentence)
    device = resolve_device(experiment.engine.device)
    return run_all(experiment.runs(), out, reporter, device=device)


def run_all(
    runs: Sequence[RunConfig],
    out: Path,
    reporter: Reporter,
    *,
    device: torch.device,
    titles: Sequence[str] | None = None,
) -> list[Outcome]:
    """Train and evaluate runs that are not finished yet, their teachers before them.

    Cohorts and slots are planned for all runs, finished or not, so that a result does not depend on
    how often the work was interrupted.

    Args:
        runs: their settings.
        out: folder of the runs, one folder a run inside.
        reporter: where progress goes.
        device: where they are computed.
        titles: what the runs are called on a screen; by default arm, seed and what varies.

    Returns:
        One outcome a run, in the order of ``runs``.

    Raises:
        InputError: something in the settings cannot be had; nothing was trained.
    """
    runs = resolved(runs, device, note=reporter.note)
    ids = map(run_id, runs)
    reporter.runs(titles_of(runs) if titles is None else dict(zip(ids, titles, strict=True)))
    check_all_clusters(folders_of(runs, out))
    found = _ended(runs, runs, out, reporter, device=device, loaded=Loaded())
    return [found[run] for run in runs]


def _ended(
    runs: Sequence[RunConfig],
    planned: Sequence[RunConfig],
    out: Path,
    reporter: Reporter,
    *,
    device: torch.device,
    loaded: Loaded,
) -> dict[RunConfig, Outcome]:
    """Return the outcome of every run, after training those that are not finished.

    Args:
        runs: their settings.
        planned: these runs and others, for which cohorts and slots are planned.
        out: folder of the runs.
        reporter: knows their titles.
        device: where they are computed.
        loaded: models and training data; what is loaded here is added.
    """
    outcomes = reused(runs, out, reporter)
    left = [run for run in runs if run not in outcomes]
    check_places(folders_of(left, out).values(), shares=False)
    pending = set(left)
    shared = contexts(pending, planned, out, reporter, device=device, loaded=loaded)
    taught = still_taught(left, shared, out)
    if teachers := all_teachers(taught):
        announce_teachers(teachers, out / TEACHERS, reporter)
        others, place = all_teachers(planned), out / TEACHERS
        found = _ended(teachers, others, place, reporter, device=device, loaded=loaded)
        failed = untaught(taught, found, out, reporter)
        outcomes |= failed
        pending -= failed.keys()
    for part in parts(shared, pending, out, device):
        outcomes |= dict(zip(part.runs, attempt(part, out), strict=True))
    return {run: outcome.if_still_there() for run, outcome in outcomes.items()}


def contexts(
    pending: Set[RunConfig],
    planned: Sequence[RunConfig],
    out: Path,
    reporter: Reporter,
    *,
    device: torch.device,
    loaded: Loaded,
) -> list[tuple[list[RunConfig], Context]]:
    """Load and check what runs need, before any compute is spent.

    Args:
        pending: the runs that are to be computed.
        planned: these and others of their cohorts.
        out: folder of the runs.
        reporter: where progress goes.
        device: where they are computed.
        loaded: models and training data; what is loaded here is added.

    Returns:
        The planned runs in groups that share a context, with it, as far as any of them is pending.

    Raises:
        InputError: something in the settings cannot be had.
    """
    left = [run for run in planned if run in pending]
    check_packages(left)
    groups = [group for group in sharing(planned) if not pending.isdisjoint(group)]
    trackers = trackers_of(left, out, reporter)
    found = []
    for group in groups:
        with waiting(CHECKING, reporter.note):
            found.append((group, prepared(group, loaded, device, reporter, trackers)))
    return found


def parts(
    shared: Sequence[tuple[Sequence[RunConfig], Context]],
    pending: Set[RunConfig],
    out: Path,
    device: torch.device,
) -> Iterator[CohortPart]:
    """Yield what is trained at once, one after the other: a cohort, or a run where slots are 1."""
    for group, context in shared:
        for plan, slots in planned_cohorts(group, context, device):
            left = [run for run in plan.runs if run in pending]
            slots = slots_to_go_on(left, context, out, planned=plan.runs, slots=slots)
            # One at a time, each is written as soon as it is done.
            for chosen in [left] if slots > 1 and left else [[run] for run in left]:
                yield CohortPart(chosen, context, slots, plan.runs)


def announce_teachers(teachers: Sequence[RunConfig], place: Path, reporter: Reporter) -> None:
    """Name the teachers, and say how many of them are not finished."""
    titles = titles_of(teachers)
    reporter.runs({name: f"teacher {title}" for name, title in titles.items()})
    missing = sum(not is_finished(place / run_id(teacher)) for teacher in teachers)
    if missing:
        counted = "1 teacher comes" if missing == 1 else f"{missing} teachers come"
        reporter.note(f"{counted} first, in {str(place)!r}")


def reused(runs: Sequence[RunConfig], out: Path, reporter: Reporter) -> dict[RunConfig, Outcome]:
    """Return the outcomes of those runs that are finished, and say which these are.

    Raises:
        InputError: one is of other inputs than those that are there now, or cannot be read.
    """
    outcomes = known_outcomes(folders_of(runs, out), reporter)
    for outcome in outcomes.values():
        forget_training(outcome.folder, reporter.note)
        reporter.note(f"reused: {outcome.folder} (same configuration, finished)")
        reporter.run_state(outcome.folder.name, "reused")
    return outcomes


def attempt(part: CohortPart, out: Path) -> list[Outcome]:
    """Run a cohort; what goes wrong with it is its runs' failure and not the others'."""
    runs, context = part.runs, part.context
    try:
        context.trackers.begin(runs)
        ended = _run_cohort(runs, context, out, slots=part.slots, planned=part.planned)
    except FAILING as error:
        ended = [_unwritten(out / run_id(run), error) for run in runs]
    except BaseException:
        context.trackers.interrupt()
        raise
    for run, outcome in zip(runs, ended, strict=True):
        _tell_end(run_id(run), outcome, context)
    return [replace(outcome, inputs=context.inputs) for outcome in ended]


def _unwritten(folder: Path, error: Exception) -> Outcome:
    return Outcome(folder, None, failure=failure_to_write(error, folder))


def _run_cohort(
    runs: Sequence[RunConfig],
    context: Context,
    out: Path,
    *,
    slots: int,
    planned: Sequence[RunConfig],
) -> list[Outcome]:
    """Train and evaluate runs that share a cohort, and write each one's folder."""
    with ExitStack() as exits:
        members = claimed_members(runs, context, out, exits, planned=planned)
        context.trackers.go_on(tokens_before(members))
        left = [member.run for member in members if member.trained is None]
        soft, failures = learned_from_teachers(left, context, out / TEACHERS)
        write_settings(members)
        for member in members:
            member.fail(failures.get(member.run))
        able = [member for member in members if member.run not in failures]
        taught = replace(context, soft=soft)
        done = iter(_finished(able, taught, slots=slots, planned=planned) if able else [])
        return [member.failed() if member.run in failures else next(done) for member in members]


def _finished(
    members: Sequence[Member], context: Context, *, slots: int, planned: Sequence[RunConfig]
) -> list[Outcome]:
    """Train and evaluate runs that have their folders and what they learn."""
    with ExitStack() as exits:
        compiling = exits.enter_context(compiling_measured())
        began = time.monotonic() - trained_before_s(members)
        try:
            cohort, stack = train_runs(members, context, slots=slots, planned=planned)
        except FAILING as error:  # such as a device that others have filled
            for member in members:
                member.fail_with(error)
            return [member.failed() for member in members]
        exits.callback(stack.remove)
        took = Took(time.monotonic() - began, compiling)
        return finish_runs(members, cohort, stack, context, took=took, planned=planned)


def _tell_end(name: str, outcome: Outcome, context: Context) -> None:
    """Say how a run ended, on the screen and in the trackers."""
    end: Literal["finished", "failed"] = "finished" if outcome.failure is None else "failed"
    failure = outcome.failure
    told = _first_scores(outcome.result) if failure is None else failure.message
    context.reporter.run_state(name, end, told)
    context.trackers.end(name, end, outcome.result, "" if failure is None else failure.message)


def _first_scores(result: Mapping[str, Any] | None) -> str:
    """A result's first score, or its likelihood where nothing is scored, in every group."""
    assert result is not None
    name = next(iter(result["scores"]), "gold_nll")
    groups = result["groups"].items()
    return ", ".join(f"{name} {scores[name]:.3f} {group}" for group, scores in groups)


def prepared(
    runs: Sequence[RunConfig],
    loaded: Loaded,
    device: torch.device,
    reporter: Reporter,
    trackers: Trackers,
) -> Context:
    """Load and check everything that can be wrong before any compute is spent."""
    task = loaded_task(runs[0].task, reporter.note)
    if runs[0].model not in loaded.models:
        loaded.models[runs[0].model] = _announced_base(runs[0], device, reporter)
    base = loaded.models[runs[0].model]
    announce_decoding(runs[0], base, reporter)
    sizes = ", ".join(f"{len(task.split(s))} {s}" for s in ("train", "validation", "test"))
    reporter.note(f"task: {runs[0].task.name}, {sizes}")
    key = training_key(runs[0])
    known = loaded.training.get(key)
    training = known if any(run.trains for run in runs) else None
    items: dict[int, Items] = {}
    for run in sorted(runs, key=lambda run: run.trains):  # which ask in every form
        shots = run.evaluation().few_shot
        if shots not in items:
            items[shots] = prompt_forms(task, run, run.evaluation(), base.tokenizer)
            for asked in items[shots].values():
                check_items(asked, run.eval, base)
        if run.trains and training is None:
            training = loaded.training[key] = task_training_data(task.train, run, base.tokenizer)
    check_runs(runs, task.train, base, training)
    rescaled = [run for run in runs if run.trains and run.rescale.factors]
    validation = validation_items(task, rescaled[0], base) if rescaled else []
    if training is not None and known is None:
        tell_targets(runs, base, reporter.note)
        for line in describe_data(training, base.tokenizer):
            reporter.note(line)
    inputs = {**base.digests, DATA: data_digest(task)}
    return Context(base, training, items, validation, reporter, trackers, inputs)


def _announced_base(run: RunConfig, device: torch.device, reporter: Reporter) -> BaseModel:
    began = time.monotonic()
    base = loaded_base(run, device, reporter.note)
    reporter.note(
        f"base model: {base.name}, {run.model.dtype} on {device.type}; {base.source} "
        f"({time.monotonic() - began:.0f} s)"
    )
    return base
