"""What running a suite would mean: its arms, its cohorts with their expected time, and refusals.

Nothing is written. What a call that computes would refuse is refused here in the same words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemabank.common.durations import duration
from schemabank.common.errors import InputError
from schemabank.common.tables import PlainTable
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.runs.beforehand import check_beforehand
from schemabank.runs.distill import all_teachers
from schemabank.runs.experiment import Loaded
from schemabank.runs.loading import resolve_device
from schemabank.runs.planning import plan_all
from schemabank.runs.progress import Reporter
from schemabank.suites.beforehand import check_search, check_suite, outcome_reader
from schemabank.suites.file import Suite, SuiteRun
from schemabank.suites.manifest import check_settled
from schemabank.suites.ratesearch import RateSearch, tuned
from schemabank.suites.tables import arms_table, tuning_tables


@dataclass(frozen=True)
class Plan:
    """What is known of a suite before it is run.

    Attributes:
        tables: its arms and, if nothing is refused, its cohorts with their expected time.
        refusal: what a call that computes would refuse; ``None``: nothing.
    """

    tables: Sequence[PlainTable]
    refusal: InputError | None = None


@dataclass(frozen=True)
class _Phase:
    """Runs that depend on no other runs of the suite but their teachers.

    Attributes:
        title: of their cohorts.
        runs: all of them.
        pending: ids of those that are still to be computed, and of their teachers.
    """

    title: str
    runs: Sequence[RunConfig]
    pending: frozenset[str]


def plan_suite(suite: Suite, out: Path, reporter: Reporter, *, shares: bool = False) -> Plan:
    """Say what running a suite would mean.

    Args:
        suite: the suite.
        out: folder of its runs.
        reporter: where progress goes.
        shares: whether a launcher's workers would train the runs.

    Raises:
        InputError: the folder is not for this suite, or holds trials that are not used again.
    """
    found = _known(suite, out, reporter)
    if found is None:
        tables = [arms_table("runs", suite.runs, out)]
    else:
        tables = [arms_table("tuning runs", [trial.run for trial in found.trials], out)]
        if found.choices is None:
            reporter.note(_to_follow(suite, found))
        else:
            final = tuned(suite, found).runs
            tables += [*tuning_tables(found.choices), arms_table("final runs", final, out)]
    try:
        phases = _phases(suite, found, out, reporter, shares=shares)
        if shares:
            reporter.note("the cohorts are those of one process; workers share them out")
        return Plan([*tables, *_all_cohorts(phases, reporter)])
    except InputError as error:
        return Plan(tables, error)


def check_plan(suite: Suite, out: Path, reporter: Reporter, *, shares: bool = False) -> None:
    """Refuse what running a suite would, as far as that is known before its model is loaded.

    Arguments are those of :func:`plan_suite`.

    Raises:
        InputError: the folder is not for this suite, a place cannot be written, or a package is not
            installed.
    """
    _phases(suite, _known(suite, out, reporter), out, reporter, shares=shares)


def _known(suite: Suite, out: Path, reporter: Reporter) -> RateSearch | None:
    """How far the search for the learning rates has come; ``None`` for a suite without one."""
    for note in suite.notes:
        reporter.note(note)
    check_suite(suite, out)
    if suite.tune is None:
        return None
    return check_search(suite, out, outcome_reader(out, note=reporter.note), reporter)


def _phases(
    suite: Suite, found: RateSearch | None, out: Path, reporter: Reporter, *, shares: bool
) -> list[_Phase]:
    """The suite's phases, after a look at what is refused of their runs."""

    def pending(runs: Sequence[RunConfig]) -> frozenset[str]:
        return frozenset(map(run_id, check_beforehand(runs, out, reporter, shares=shares)))

    if found is None:
        runs = _each_once(suite.runs)
        return [_Phase("cohorts", runs, pending(runs))]
    trials = _each_once(trial.run for trial in found.trials)
    left = pending(_each_once(trial.run for trial in found.missing))
    phases = [_Phase("cohorts of the tuning runs", trials, left)]
    if found.choices is None:  # what their own learning rates make of them, nobody knows yet
        runs = _each_once(suite.runs)
        left = frozenset(map(run_id, [*runs, *all_teachers(runs)]))
    else:
        final = tuned(suite, found)
        check_settled(out, final, found)
        runs = _each_once(final.runs)
        left = pending(runs)
    return [*phases, _Phase("cohorts of the final runs", runs, left)]


def _each_once(runs: Iterable[SuiteRun]) -> list[RunConfig]:
    """The settings of runs, of which places with the same settings share one."""
    return list({run_id(run.config): run.config for run in runs}.values())


def _all_cohorts(phases: Sequence[_Phase], reporter: Reporter) -> list[PlainTable]:
    """The cohorts of runs, and before them those of their teachers, with their expected time.

    The last phase is looked at first, as by a call that searches: what it lacks is then known.
    """
    loaded, tables = Loaded(), list[PlainTable]()
    for phase in reversed(phases):
        title = f"{phase.title}, as if nothing were finished"
        teachers = all_teachers(phase.runs)
        parts = {f"teachers, before the others: {title}": teachers, title: phase.runs}
        own = [
            _cohort_table(name, part, phase.pending, reporter, loaded)
            for name, part in parts.items()
            if part
        ]
        tables = [*own, *tables]
    return tables


def _cohort_table(
    title: str,
    runs: Sequence[RunConfig],
    pending: frozenset[str],
    reporter: Reporter,
    loaded: Loaded,
) -> PlainTable:
    device = resolve_device(runs[0].engine.device)
    plans = plan_all(runs, reporter, device=device, loaded=loaded, pending=pending)
    asks = any(all_teachers(plan.runs) for plan in plans)
    rows = [
        [str(n), f"{len(p.runs)}", str(p.slots), f"{p.num_steps:,}", duration(p.time_s)]
        + [duration(p.asking_s)] * asks
        for n, p in enumerate(plans, start=1)
    ]
    head = ["cohort", "runs", "at once", "steps", "training, about"]
    return title, head + ["asking teachers, about"] * asks, rows


def _to_follow(suite: Suite, found: RateSearch) -> str:
    """A sentence on the runs that come after the trials that are known."""
    assert suite.tune is not None
    each = len(found.trials) // len(found.factors)
    left = suite.tune.extend - found.extensions
    more = (
        f"; before them, where the best of an arm lies at an end of the factors, {each} more "
        f"tuning runs for each factor beyond it, up to {left} times at either end"
    )
    return (
        f"{len(suite.runs)} final runs follow, at the learning rates that the tuning runs choose"
        f"{more if left > 0 else ''}"
    )
