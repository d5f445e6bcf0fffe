"""What running a suite would mean: its arms, its cohorts with their expected time, and refusals.

Nothing is written or started. What a call that computes would refuse is refused here in the same
words, beside whatever can be said all the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemabank.common.durations import duration
from schemabank.common.errors import InputError
from schemabank.common.tables import PlainTable
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.launchers import LauncherName, check_launcher
from schemabank.runs.beforehand import check_beforehand, check_packages
from schemabank.runs.distill import all_teachers
from schemabank.runs.experiment import Loaded
from schemabank.runs.loading import resolve_device
from schemabank.runs.members import Outcome
from schemabank.runs.planning import plan_all
from schemabank.runs.progress import Reporter
from schemabank.suites.beforehand import check_suite, check_trials, known_search, outcome_reader
from schemabank.suites.file import Suite, SuiteRun
from schemabank.suites.manifest import check_settled
from schemabank.suites.ratesearch import RateSearch, all_rows, search, tuned
from schemabank.suites.tables import arms_table, tuning_tables


@dataclass(frozen=True)
class Plan:
    """What is known of a suite before it is run.

    Attributes:
        suite: with its final runs, at the learning rates that were chosen, once they are.
        search: how far the choice has come; ``None`` for a suite that is not tuned.
        out: folder of its runs.
        cohorts: with their expected time, if nothing but runs in use is refused.
        refusal: the first that a call which computes would refuse; ``None``: nothing.
    """

    suite: Suite
    search: RateSearch | None
    out: Path
    cohorts: Sequence[PlainTable]
    refusal: InputError | None

    def rows(self) -> list[dict[str, object]]:
        """Id and place of every run that is known: the final ones once rates are chosen."""
        return all_rows(self.suite, self.search)

    def tables(self) -> list[PlainTable]:
        """Its arms, how the learning rates were chosen, and its cohorts."""
        if self.search is None:
            return [arms_table("runs", self.suite.runs, self.out), *self.cohorts]
        tables = [arms_table("tuning runs", [t.run for t in self.search.trials], self.out)]
        if self.search.choices is not None:
            tables += tuning_tables(self.search.choices)
            tables.append(arms_table("final runs", self.suite.runs, self.out))
        return [*tables, *self.cohorts]


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


class _Refusals:
    """Takes what is refused, so that what does not depend on it can still be said."""

    def __init__(self) -> None:
        self.first: InputError | None = None

    def take(self, refusal: InputError | None) -> None:
        """Keep the first one."""
        self.first = self.first or refusal

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take what is raised in here."""
        try:
            yield
        except InputError as error:
            self.take(error)


def plan_suite(
    suite: Suite,
    out: Path,
    reporter: Reporter,
    *,
    launch: LauncherName = "local",
    workers: int | None = None,
    with_cohorts: bool = True,
) -> Plan:
    """Say what running a suite would mean.

    Args:
        suite: the suite.
        out: folder of its runs.
        reporter: where progress goes.
        launch: what would train the runs.
        workers: how many processes would, as for a launcher.
        with_cohorts: plan its cohorts, for which model and data are loaded.
    """
    refusals = _Refusals()
    with refusals.taken():
        check_launcher(launch, workers, suite.runs[0].config.engine.device)
    for note in suite.notes:
        reporter.note(note)
    with refusals.taken():
        check_suite(suite, out)
    found = None
    if suite.tune is not None:
        found = _search_so_far(suite, out, reporter, refusals)
        suite = suite if found.choices is None else tuned(suite, found)
    cohorts = list[PlainTable]()
    if refusals.first is None:
        shares = launch != "local" or workers is not None
        with refusals.taken():
            phases = _phases(suite, found, out, reporter, refusals, shares=shares)
            if with_cohorts:
                _tell(suite, found, reporter, shares=shares)
                cohorts = _all_cohorts(phases, reporter)
    return Plan(suite, found, out, cohorts, refusals.first)


def _search_so_far(suite: Suite, out: Path, reporter: Reporter, refusals: _Refusals) -> RateSearch:
    """How far the search has come; where some of it is refused, as far as it is known before."""
    rounds = list[RateSearch]()
    with refusals.taken():
        finished = outcome_reader(out, note=reporter.note)

        def read(found: RateSearch) -> list[Outcome] | None:
            rounds.append(found)
            return finished(found)

        found = known_search(suite, out, read)
        with refusals.taken():
            check_trials(found, reporter)
        return found
    return rounds[-1] if rounds else search(suite, lambda _: None)


def _phases(
    suite: Suite,
    found: RateSearch | None,
    out: Path,
    reporter: Reporter,
    refusals: _Refusals,
    *,
    shares: bool,
) -> list[_Phase]:
    """The suite's phases, after a look at what is refused of their runs.

    Raises:
        InputError: something is, and not only for as long as another call is writing a run.
    """

    def pending(runs: Sequence[RunConfig]) -> frozenset[str]:
        left = check_beforehand(runs, out, reporter, shares=shares)
        refusals.take(left.in_use)
        return left.runs

    runs = _each_once(suite.runs)
    if found is None:
        return [_Phase("cohorts", runs, pending(runs))]
    if found.choices is None:  # as a call that searches, which plans them before
        check_packages(runs)
    trials = _each_once(trial.run for trial in found.trials)
    left = pending(_each_once(trial.run for trial in found.missing))
    phases = [_Phase("cohorts of the tuning runs", trials, left)]
    if found.choices is None:  # what their own learning rates make of them, nobody knows yet
        left = frozenset(map(run_id, [*runs, *all_teachers(runs)]))
    else:
        check_settled(out, suite, found)
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
    return [table for table in tables if table[2]]  # of finished runs that lack something now, none


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


def _tell(suite: Suite, found: RateSearch | None, reporter: Reporter, *, shares: bool) -> None:
    """Say what the cohorts do not show."""
    if found is not None and found.choices is None:
        reporter.note(_to_follow(suite, found))
    if shares:
        reporter.note("the cohorts are those of one process; workers share them out")


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
