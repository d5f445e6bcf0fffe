"""A suite from its file's settings to finished runs and tables: plan, tune, run, summarise.

Finished runs are reused. Cohorts are planned from all runs of a round, finished or not, so that an
interrupted suite ends with the same bytes as one that was not interrupted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from schemabank.common.errors import FailedRunsError, InputError
from schemabank.common.tables import PlainTable
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.launchers import Launcher
from schemabank.runs.experiment import run_all
from schemabank.runs.fairness import first_last, inequalities, trained
from schemabank.runs.folder import forget_training
from schemabank.runs.loading import resolve_device
from schemabank.runs.members import Outcome
from schemabank.runs.planning import plan_all
from schemabank.runs.progress import Reporter
from schemabank.runs.tables import check_tables
from schemabank.suites.beforehand import (
    check_suite,
    check_trials,
    known_search,
    outcome_reader,
    reused_trials,
)
from schemabank.suites.file import Suite, SuiteRun
from schemabank.suites.manifest import (
    write_manifest,
    written_manifest,
)
from schemabank.suites.ratesearch import (
    RateSearch,
    all_rows,
    notes,
    search,
    tuned,
    tuning_rows,
)
from schemabank.suites.tables import result_tables, tuning_tables

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
            return [*_rows_of_outcomes(tuning_rows(self.search), self.trials), *chosen]
        places = all_rows(self.suite, self.search)
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
    check_suite(suite, out)
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


def _search_rates(
    suite: Suite, out: Path, reporter: Reporter, device: torch.device, run_titled: RunTitled
) -> RateSearch:
    """Choose the learning rates; finished runs of the search are reused."""
    finished = outcome_reader(out, note=reporter.note)
    # The search may take days. Whatever refuses its trials, or keeps the final runs from starting,
    # is found before it.
    known = known_search(suite, out, finished)
    check_trials(known, reporter)
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
    for outcome in reused_trials(found).values():
        forget_training(outcome.folder, reporter.note)
    for note in notes(found):
        reporter.note(note)
    return found


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


def _rows_of_outcomes(places: Sequence[Row], outcomes: Sequence[Outcome]) -> list[Row]:
    return [
        {**row, "failure": outcome.failure and outcome.failure.row(), "result": outcome.result}
        for row, outcome in zip(places, outcomes, strict=True)
    ]


def _point_in_words(run: SuiteRun) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.point.items())
