"""What is refused of a suite's folder, its contrast and its search before anything is trained.

The call and its plan make each of these checks. Those of single runs are in
:mod:`schemabank.runs.beforehand`.
"""

from collections.abc import Callable
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.common.waiting import Note
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.runs.beforehand import check_all_reusable, folders_of
from schemabank.runs.folder import SUITE, is_finished
from schemabank.runs.inputs import check_all_clusters
from schemabank.runs.members import Outcome, finished_outcome
from schemabank.runs.progress import Reporter
from schemabank.suites.file import Suite
from schemabank.suites.manifest import SettledTrials, check_manifest
from schemabank.suites.ratesearch import RateSearch, search
from schemabank.tasks.catalog import TASKS, load_task, split_of

ReadOutcomes = Callable[[RateSearch], list[Outcome] | None]


def check_suite(suite: Suite, out: Path) -> None:
    """Refuse a suite that a folder is not for, or whose contrast is on what its tasks lack.

    Raises:
        InputError: ``out`` belongs to another suite or cannot be written, or a task of the suite
            does not have the part of the split that its contrast names.
    """
    check_manifest(out, suite)
    if not (out / SUITE).exists():  # else it was checked when the suite began, and has stayed
        _check_group(suite)


def known_search(suite: Suite, out: Path, finished: ReadOutcomes) -> RateSearch:
    """Return how far a search for learning rates has come.

    Args:
        suite: a suite that is tuned.
        out: its folder.
        finished: reads the outcomes of the trials in there.

    Raises:
        InputError: finished ones are of an older version, or an arm diverged at all factors.
    """

    def read(found: RateSearch) -> list[Outcome] | None:
        # Before they are compared with newer ones, whose items would be others.
        check_all_clusters(folders_of([trial.run.config for trial in found.missing], out))
        return finished(found)

    return search(suite, read)


def check_trials(found: RateSearch, reporter: Reporter) -> None:
    """Refuse a search whose finished trials are of other inputs than those that are there now.

    Args:
        found: how far the search has come.
        reporter: told what could not be compared.

    Raises:
        InputError: one is of others.
    """
    check_all_reusable(reused_trials(found), reporter)


def reused_trials(found: RateSearch) -> dict[RunConfig, Outcome]:
    """Return the outcomes of the trials that were finished before."""
    return {
        trial.run.config: outcome
        for trial, outcome in zip(found.trials, found.outcomes, strict=False)
        if outcome.reused and outcome.result is not None
    }


def outcome_reader(out: Path, *, note: Note) -> ReadOutcomes:
    """Return a function that gives the outcomes of a round of trials, if all of them have ended.

    Args:
        out: the suite's folder.
        note: told once of each trial that has diverged and is tried again.
    """
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
