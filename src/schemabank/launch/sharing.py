"""What launchers with several workers do alike: rounds, one after the other, and their outcomes.

Teachers are a round before that of the runs which learn from them.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from schemabank.common.errors import InputError
from schemabank.config.file import run_id
from schemabank.config.naming import titles_of
from schemabank.config.settings import RunConfig
from schemabank.launch.rounds import PLAN, Round, open_round, remove_finished
from schemabank.runs.beforehand import check_places, folders_of
from schemabank.runs.distill import TEACHERS, all_teachers, teachers_of, untaught
from schemabank.runs.experiment import Loaded, announce_teachers, contexts, reused
from schemabank.runs.folder import has_trained, is_finished, partial_folder
from schemabank.runs.inputs import check_all_clusters
from schemabank.runs.loading import resolved
from schemabank.runs.members import Outcome
from schemabank.runs.progress import Reporter
from schemabank.runs.resuming import still_taught

LEASE_S = 120.0  # network file systems show what others wrote after up to a minute


@dataclass(frozen=True)
class Sharing(ABC):
    """A launcher whose workers share rounds.

    Attributes:
        lease_s: how long a worker may be silent before others take its work over.
    """

    lease_s: float = LEASE_S

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many workers there are."""

    @abstractmethod
    def work(self, shared: Round, reporter: Reporter) -> Set[str]:
        """Let workers do a round until it is over, and return of which runs the end was told.

        Raises:
            InputError: something in the settings cannot be had.
            RuntimeError: workers end before they begin.
        """

    def __call__(
        self,
        runs: Sequence[RunConfig],
        out: Path,
        reporter: Reporter,
        *,
        device: torch.device,
        titles: Sequence[str] | None = None,
    ) -> list[Outcome]:
        """Train and evaluate runs that are not finished, their teachers before them.

        Raises:
            InputError: something in the settings cannot be had.
            RuntimeError: the processes end before they begin.
        """
        runs = resolved(runs, device, note=reporter.note)
        ids = map(run_id, runs)
        reporter.runs(titles_of(runs) if titles is None else dict(zip(ids, titles, strict=True)))
        check_all_clusters(folders_of(runs, out))
        found = self._ended(runs, runs, out, reporter, device=device)
        return [found[run] for run in runs]

    def _ended(
        self,
        runs: Sequence[RunConfig],
        planned: Sequence[RunConfig],
        out: Path,
        reporter: Reporter,
        *,
        device: torch.device,
    ) -> dict[RunConfig, Outcome]:
        """Return the outcome of every run, after those that are not finished were trained."""
        outcomes = reused(runs, out, reporter)
        left = [run for run in runs if run not in outcomes]
        check_places(folders_of(left, out).values(), shares=True)
        taught = _still_taught(left, planned, out, reporter, device=device)
        if teachers := all_teachers(taught):
            announce_teachers(teachers, out / TEACHERS, reporter)
            others, place = all_teachers(planned), out / TEACHERS
            found = self._ended(teachers, others, place, reporter, device=device)
            outcomes |= untaught(taught, found, out, reporter)
            left = [run for run in left if run not in outcomes]
        if left:
            able = [run for run in runs if run not in outcomes or outcomes[run].failure is None]
            shared = open_round(
                able,
                out,
                planned=planned,
                num_workers=self.num_workers,
                lease_s=self.lease_s,
            )
            outcomes |= self._done(shared, left, reporter)
        remove_finished(out)
        return {run: outcome.if_still_there() for run, outcome in outcomes.items()}

    def _done(
        self, shared: Round, runs: Sequence[RunConfig], reporter: Reporter
    ) -> dict[RunConfig, Outcome]:
        """Let processes do a round, and return what has become of some of its runs."""
        _free_memory()
        try:
            told = self.work(shared, reporter)
        except InputError:
            _forget_unbegun(shared)
            raise
        outcomes = shared.outcomes(runs)
        for run, outcome in outcomes.items():
            if run_id(run) not in told:  # another launcher's workers did it
                failure = outcome.failure
                end: Literal["finished", "failed"] = "failed" if failure else "finished"
                reporter.run_state(run_id(run), end, failure.message if failure else "")
        if all(outcome.failure is None for outcome in outcomes.values()):
            shared.remove()
        return outcomes


def _still_taught(
    runs: Sequence[RunConfig],
    planned: Sequence[RunConfig],
    out: Path,
    reporter: Reporter,
    *,
    device: torch.device,
) -> Sequence[RunConfig]:
    """Return the runs whose teachers are needed; one that has trained asks them no more.

    Whether what is kept of a training can be used is known with model and data alone. This process
    loads them where that saves the training of teachers.
    """
    lacking = [
        run
        for run in runs
        if not all(is_finished(out / TEACHERS / run_id(each)) for each in teachers_of(run))
    ]
    if not any(has_trained(partial_folder(out / run_id(run))) for run in lacking):
        return runs
    shared = contexts(set(runs), planned, out, reporter, device=device, loaded=Loaded())
    return still_taught(runs, shared, out)


def _free_memory() -> None:
    """Leave the GPU to the workers; this process may have planned on it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _forget_unbegun(shared: Round) -> None:
    """Remove a round for which nothing was decided, unless another call's worker is about to."""
    if shared.units() is None and not shared.queue.is_held(PLAN):
        shared.remove()
