"""A suite from its file's settings to finished runs and tables: plan, tune, run, summarise.

Finished runs are reused. Cohorts are planned from all runs of a round, finished or not, so that an
interrupted suite ends with the same bytes as one that was not interrupted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from schemabank.common.durations import duration
from schemabank.common.errors import FailedRunsError, InputError
from schemabank.common.tables import PlainTable
from schemabank.common.waiting import Note
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.launchers import Launcher
from schemabank.runs.distill import all_teachers
from schemabank.runs.experiment import Loaded, check_all_reusable, run_all
from schemabank.runs.fairness import first_last, inequalities, trained
from schemabank.runs.folder import SUITE, forget_training, is_finished
from schemabank.runs.inputs import check_all_clusters
from schemabank.runs.loading import resolve_device
from schemabank.runs.members import Outcome, finished_outcome
from schemabank.runs.planning import plan_all
from schemabank.runs.progress import Reporter
from schemabank.runs.tables import check_tables
from schemabank.suites.file import Suite, SuiteRun
from schemabank.suites.manifest import (
    SettledTrials,
    check_manifest,
    write_manifest,
    written_manifest,
)
from schemabank.suites.ratesearch import RateSearch, notes, search, tuned
from schemabank.suites.tables import arms_table, result_tables, tuning_tables
from schemabank.tasks.catalog import TASKS, load_task, split_of

Row = dict[str, object]

RunTitled = Callable[[Sequence[tuple[RunConfig, str]]], list[Outcome]]


@dataclass(frozen=True)
class SuiteOutcome:
    """A suite that has ended.

    Attributes:
        suite: with its final runs, at the learning rates that were chosen.
        outcomes: of the final runs, in their order; none after the search alone.
        search: how the learning rates were chosen; ``None`` for a suite that is not tuned.
    """

    suite: Suite
    outcomes: tuple[Outcome, ...]
    search: RateSearch | None

    @property
    def trials(self) -> tuple[Outcome, ...]:
        """The outcomes of the tuning runs."""
        return () if self.search is None else self.search.outcomes

    def rows(self) -> list[Row]:
        """Every run's place, failure and result, tuning runs first.

        After the search alone, its choices stand in the place of the final runs.
        """
        if self.search is not None and not self.outcomes:
            chosen = [{**c.row(), "phase": "chosen"} for c in self.search.choices or ()]
            return [*_rows_of_outcomes(_tuning_rows(self.search), self.trials), *chosen]
        places = _all_rows(self.suite, self.search)
        return _rows_of_outcomes(places, (*self.trials, *self.outcomes))

    def tables(self) -> list[PlainTable]:
        """How the learning rates were chosen, the final scores, and adapters in doubt."""
        choices = () if self.search is None else self.search.choices or ()
        results = [o.result for o in (*self.trials, *self.outcomes)]
        return [
            *tuning_tables(choices),
            *result_tables(self.suite, self.outcomes),
            *check_tables(results),
        ]

    def inequalities(self) -> list[str]:
        """How the training of the contrast's arms differs; without a contrast, of all arms."""
        if not self.outcomes:
            return []
        found = [
            trained(run.config, outcome.result, arm=run.arm, setting=_point_in_words(run))
            for run, outcome in zip(self.suite.runs, self.outcomes, strict=True)
        ]
        known = [own for own in found if own is not None]
        declared = self.suite.contrast
        arms = [declared.treatment, declared.control] if declared else first_last(known)
        return inequalities(known, arms, tuned=self.search is not None)


def run_suite(
    suite: Suite,
    out: Path,
    reporter: Reporter,
    *,
    tune_only: bool = False,
    launcher: Launcher | None = None,
) -> SuiteOutcome:
    """Train and evaluate all runs that are not finished, the search for learning rates first.

    Args:
        suite: the suite.
        out: folder of the runs, one folder a run inside, and of ``suite.json``.
        reporter: where progress goes.
        tune_only: stop when the learning rates are chosen; the same suite goes on from there.
        launcher: trains the runs of a round; by default this process.

    Raises:
        InputError: ``out`` belongs to another suite, or the settings name something that is not
            there, and nothing was trained; or an arm diverged at all factors.
        FailedRunsError: tuning runs failed for a reason such as too little memory; no learning rate
            was chosen.
    """
    if tune_only and suite.tune is None:
        raise InputError(
            "only the search for learning rates was asked for, but the suite has none: add tune to "
            "it, or leave out --tune-only"
        )
    for note in suite.notes:
        reporter.note(note)
    device = resolve_device(suite.runs[0].config.engine.device)
    check_manifest(out, suite)
    if not (out / SUITE).exists():  # else it was checked when the suite began, and has stayed
        _check_group(suite)
    trains = launcher or run_all
    run_titled = partial(_run_titled, partial(trains, out=out, reporter=reporter, device=device))
    found = None
    if suite.tune is not None:
        found = _search_rates(suite, out, reporter, device, run_titled)
        if tune_only:
            return SuiteOutcome(suite, (), found)
        suite = tuned(suite, found)
    with written_manifest(out, suite, found):
        outcomes = run_titled([(run.config, run.title) for run in suite.runs])
    return SuiteOutcome(suite, tuple(outcomes), found)


def _check_group(suite: Suite) -> None:
    """Refuse a contrast on a part of the split that a task of the suite does not have."""
    if suite.contrast is None or suite.contrast.group is None:
        return
    group, seen = suite.contrast.group, set[str]()
    for config in (run.config for run in suite.runs):
        split = split_of(config.task, config.eval.split)
        asked = f"{split} {config.task.model_dump_json()}"
        if asked in seen or TASKS[config.task.name].items is not None:  # which makes its own parts
            continue
        seen.add(asked)
        groups = dict.fromkeys(each.group for each in load_task(config.task).split(split))
        if group not in groups:
            raise InputError(
                f"contrast.group is {group!r}, but the items of the split {split} of the task "
                f"{config.task.name!r} are of {', '.join(map(repr, groups))}: name one of these, "
                "or leave it out for the first"
            )


def planned_rows(suite: Suite, out: Path) -> list[Row]:
    """Return id and place of every run that is known: the final ones once rates are chosen."""
    if suite.tune is None:
        return suite.rows()
    found = search(suite, _outcome_reader(out, note=lambda _: None))
    return _all_rows(suite if found.choices is None else tuned(suite, found), found)


def plan_suite(suite: Suite, out: Path, reporter: Reporter) -> list[PlainTable]:
    """Say what running a suite would mean: its arms, and its cohorts with their expected time.

    If the model or the data cannot be loaded, the cohorts are left out and the reason is noted.
    """
    for note in suite.notes:
        reporter.note(note)
    if suite.tune is None:
        tables = [arms_table("runs", suite.runs, out)]
        phases: dict[str, Sequence[SuiteRun]] = {"cohorts": suite.runs}
    else:
        found = search(suite, _outcome_reader(out, note=reporter.note))
        trials = [trial.run for trial in found.trials]
        tables = [arms_table("tuning runs", trials, out)]
        phases = {"cohorts of the tuning runs": trials, "cohorts of the final runs": suite.runs}
        if found.choices is None:
            reporter.note(_to_follow(suite, found))
        else:
            final = tuned(suite, found).runs
            tables += [*tuning_tables(found.choices), arms_table("final runs", final, out)]
    loaded = Loaded()
    try:
        _check_group(suite)
        for title, runs in phases.items():
            title = f"{title}, as if nothing were finished"
            tables += _cohort_tables(title, runs, reporter, loaded)
    except InputError as error:
        reporter.note(f"no cohorts and no expected time: {error}")
    return tables


def _search_rates(
    suite: Suite, out: Path, reporter: Reporter, device: torch.device, run_titled: RunTitled
) -> RateSearch:
    """Choose the learning rates; finished runs of the search are reused."""
    finished = _outcome_reader(out, note=reporter.note)
    first = search(suite, lambda _: None)
    # Before they are compared with newer ones, whose items would be others.
    check_all_clusters([trial.run.config for trial in first.trials], out)
    # The search may take days. Whatever refuses its trials, or keeps the final runs from starting,
    # is found before it.
    known = search(suite, finished)
    check_all_reusable(_reused(known), reporter)
    if known.choices is None:
        plan_all([run.config for run in suite.runs], reporter, device=device)

    def run(found: RateSearch) -> Sequence[Outcome]:
        outcomes = finished(found)
        if outcomes is None:
            write_manifest(out, suite, found)
            trials = [(trial.run.config, trial.title) for trial in found.missing]
            outcomes = run_titled(trials)
            ended = replace(found, outcomes=(*found.outcomes, *outcomes))
            write_manifest(out, suite, ended)  # what has diverged is not tried again
            _check_failures(outcomes)
        return outcomes

    found = search(suite, run)
    for outcome in _reused(found).values():
        forget_training(outcome.folder, reporter.note)
    for note in notes(found):
        reporter.note(note)
    return found


def _reused(found: RateSearch) -> dict[RunConfig, Outcome]:
    """The outcomes of the trials that were finished before."""
    return {
        trial.run.config: outcome
        for trial, outcome in zip(found.trials, found.outcomes, strict=False)
        if outcome.reused and outcome.result is not None
    }


def _outcome_reader(out: Path, *, note: Note) -> Callable[[RateSearch], list[Outcome] | None]:
    """Return a function that gives the outcomes of a round of trials, if all of them have ended."""
    settled = SettledTrials(out, note)

    def read(found: RateSearch) -> list[Outcome] | None:
        ended = [_known_outcome(out, trial.run.config, settled) for trial in found.missing]
        known = [outcome for outcome in ended if outcome is not None]
        return known if len(known) == len(ended) else None

    return read


def _known_outcome(out: Path, run: RunConfig, settled: SettledTrials) -> Outcome | None:
    """The outcome of a trial that need not be run."""
    folder = out / run_id(run)
    if is_finished(folder):
        return finished_outcome(run, folder)
    return settled.get(run)


def _run_titled(
    run: Callable[..., list[Outcome]], titled: Sequence[tuple[RunConfig, str]]
) -> list[Outcome]:
    """Run what is not finished; places with the same settings share a run."""
    ids = [run_id(config) for config, _ in titled]
    configs, titles = zip(*dict(zip(ids, titled, strict=True)).values(), strict=True)
    done = run(configs, titles=titles)
    outcomes = dict(zip(dict.fromkeys(ids), done, strict=True))
    return [outcomes[name] for name in ids]


def _check_failures(outcomes: Sequence[Outcome]) -> None:
    passing = [(o.folder, o.failure) for o in outcomes if o.failure and not o.failure.is_settled]
    if passing:
        (folder, first), *_ = passing
        raise FailedRunsError(
            f"{len(passing)} of {len(outcomes)} tuning runs failed, the first of them "
            f"{str(folder)!r} ({first}): no learning rate was chosen, remove the cause and run the "
            "suite again, which goes on from here"
        )


def _all_rows(suite: Suite, found: RateSearch | None) -> list[Row]:
    """Rows of the tuning runs and, once they are known, of the final ones."""
    if found is None:
        return suite.rows()
    rows = _tuning_rows(found)
    if found.choices is None:
        return rows
    return [*rows, *({**row, "phase": "final"} for row in suite.rows())]


def _tuning_rows(found: RateSearch) -> list[Row]:
    return [{**trial.row(), "phase": "tune"} for trial in found.trials]


def _rows_of_outcomes(places: Sequence[Row], outcomes: Sequence[Outcome]) -> list[Row]:
    return [
        {**row, "failure": outcome.failure and outcome.failure.row(), "result": outcome.result}
        for row, outcome in zip(places, outcomes, strict=True)
    ]


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


def _cohort_tables(
    title: str, runs: Sequence[SuiteRun], reporter: Reporter, loaded: Loaded
) -> list[PlainTable]:
    """The cohorts of runs, and before them those of their teachers, with their expected time."""
    configs = list({run_id(run.config): run.config for run in runs}.values())
    parts = {f"teachers, before the others: {title}": all_teachers(configs), title: configs}
    head = ["cohort", "runs", "at once", "steps", "training, about"]
    tables: list[PlainTable] = []
    for name, part in parts.items():
        if part:
            device = resolve_device(part[0].engine.device)
            plans = plan_all(part, reporter, device=device, loaded=loaded)
            asks = any(all_teachers(plan.runs) for plan in plans)
            rows = [
                [str(n), f"{len(p.runs)}", str(p.slots), f"{p.num_steps:,}", duration(p.time_s)]
                + [duration(p.asking_s)] * asks
                for n, p in enumerate(plans, start=1)
            ]
            tables.append((name, head + ["asking teachers, about"] * asks, rows))
    return tables


def _point_in_words(run: SuiteRun) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.point.items())
