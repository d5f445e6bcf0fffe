"""What training would take, before any of it is done: cohorts, their slots, steps and time."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch

from schemabank.common.errors import InputError
from schemabank.common.waiting import waiting
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.engine.planner import journey
from schemabank.engine.seating import count_steps
from schemabank.runs.beforehand import check_packages
from schemabank.runs.distill import asking_time_s
from schemabank.runs.experiment import CHECKING, Loaded, prepared
from schemabank.runs.grouping import planned_cohorts, sharing
from schemabank.runs.loading import resolved
from schemabank.runs.preflight import estimate
from schemabank.runs.progress import Reporter
from schemabank.runs.stacks import build_stack
from schemabank.runs.trackers import Trackers


@dataclass(frozen=True)
class Planned:
    """A cohort as it will be trained.

    Attributes:
        runs: in it, the longest first.
        slots: how many train at once.
        num_steps: of the whole cohort, all slots at once.
        time_s: what training takes, roughly.
        asking_s: what it takes to ask their teachers before, roughly.
    """

    runs: tuple[RunConfig, ...]
    slots: int
    num_steps: int
    time_s: float
    asking_s: float = 0.0


def plan_all(
    runs: Sequence[RunConfig],
    reporter: Reporter,
    *,
    device: torch.device,
    loaded: Loaded | None = None,
    pending: Set[str] | None = None,
) -> list[Planned]:
    """Load and check what the runs need, and say what training them would take.

    Args:
        runs: to plan; their teachers are for the caller to plan.
        reporter: where progress goes.
        device: that they would run on.
        loaded: by calls for other runs before this one; what this one loads is added.
        pending: ids of those that are still to be computed, with their settings resolved; by
            default all are.

    Returns:
        The cohorts, but for those whose runs are all finished and lack something now. A call that
        runs them would not miss it.

    Raises:
        InputError: something in the settings of pending runs cannot be had.
    """
    found: list[Planned] = []
    loaded = Loaded() if loaded is None else loaded
    check_packages(run for run in runs if pending is None or run_id(run) in pending)
    for group in sharing(resolved(runs, device, note=reporter.note)):
        try:
            with waiting(CHECKING, reporter.note):
                context = prepared(group, loaded, device, reporter, Trackers({}, reporter))
        except InputError as error:
            if pending is None or not pending.isdisjoint(map(run_id, group)):
                raise
            reporter.note(f"finished runs without an expected time: {len(group)} ({error})")
            continue
        for plan, slots in planned_cohorts(group, context, device):
            data = context.training
            if not plan.runs[0].trains or data is None:
                found.append(Planned(plan.runs, slots, 0, 0.0))
                continue
            epoch = data.schedule.steps_per_epoch
            journeys = [journey(run, epoch=epoch) for run in plan.runs]
            steps = count_steps(journeys, num_slots=slots, cycle=data.schedule.cycle)
            stack = build_stack(plan.runs, context.base, slots=slots)
            expected = estimate(stack, data, steps, plan.runs, validation=context.validation)
            at_once = [plan.runs] if slots > 1 else [[run] for run in plan.runs]
            asking_s = asking_time_s(stack, data.encoded, at_once)
            stack.remove()
            found.append(Planned(plan.runs, slots, sum(steps), expected.time_s, asking_s))
    return found
