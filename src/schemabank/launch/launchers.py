"""The ways to start what trains a suite's runs: this process, or worker processes of this machine.

A launcher does what :func:`schemabank.runs.experiment.run_all` does, with the same results. All
processes may be lost and all work begun twice: what counts is on the disk.
"""

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from schemabank.common.cores import given_cores
from schemabank.common.errors import InputError
from schemabank.common.folders import check_writable
from schemabank.config.file import run_id
from schemabank.config.naming import titles_of
from schemabank.config.settings import RunConfig
from schemabank.launch.crew import Crew
from schemabank.launch.rounds import Round, open_round
from schemabank.runs.distill import TEACHERS, all_teachers, untaught
from schemabank.runs.experiment import announce_teachers, reused, run_all
from schemabank.runs.loading import resolve_device, resolved
from schemabank.runs.members import Outcome
from schemabank.runs.progress import Reporter

LEASE_S = 120.0  # network file systems show what others wrote after up to a minute
THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"

LauncherName = Literal["local", "gpus"]


class Launcher(Protocol):
    """Trains and evaluates runs that are not finished; see :func:`run_all`."""

    def __call__(
        self,
        runs: Sequence[RunConfig],
        out: Path,
        reporter: Reporter,
        *,
        device: torch.device,
        titles: Sequence[str] | None = None,
    ) -> list[Outcome]:
        """Return one outcome a run, in the order of ``runs``."""


def launcher(name: LauncherName, num_workers: int | None, device: str) -> Launcher:
    """Return what trains the runs of a suite.

    Args:
        name: ``local`` or ``gpus``.
        num_workers: how many processes; ``None`` is this one alone, or one for every GPU.
        device: the suite's ``engine.device``.

    Raises:
        InputError: this machine, or the suite, does not allow it.
    """
    if name == "gpus":
        return Workers(_one_gpu_each(num_workers, device))
    if num_workers is None:
        return run_all
    if resolve_device(device).type == "cuda":
        raise InputError(
            f"--workers is {num_workers}, but the runs use a GPU, which one process fills by "
            "itself: use --launch gpus for a worker on every GPU, or --set engine.device=cpu"
        )
    return Workers(_cores_shared(num_workers))


@dataclass(frozen=True)
class Workers:
    """A launcher that starts worker processes on this machine, and shares the work with others.

    Attributes:
        environments: what is set for each process beside our own environment.
        lease_s: how long a process may be silent before others take its work over.
    """

    environments: Sequence[Mapping[str, str]]
    lease_s: float = LEASE_S

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
        found = self._ended(runs, runs, out, reporter)
        return [found[run] for run in runs]

    def _ended(
        self,
        runs: Sequence[RunConfig],
        planned: Sequence[RunConfig],
        out: Path,
        reporter: Reporter,
    ) -> dict[RunConfig, Outcome]:
        """Return the outcome of every run, after those that are not finished were trained."""
        outcomes = reused(runs, out, reporter)
        left = [run for run in runs if run not in outcomes]
        for run in left:
            check_writable(out / run_id(run))
        if teachers := all_teachers(left):
            announce_teachers(teachers, out / TEACHERS, reporter)
            found = self._ended(teachers, all_teachers(planned), out / TEACHERS, reporter)
            outcomes |= untaught(left, found, out, reporter)
            left = [run for run in left if run not in outcomes]
        if left:
            shared = open_round(
                runs,
                out,
                planned=planned,
                num_workers=len(self.environments),
                lease_s=self.lease_s,
            )
            outcomes |= self._done(shared, left, reporter)
        return {run: outcome.if_still_there() for run, outcome in outcomes.items()}

    def _done(
        self, shared: Round, runs: Sequence[RunConfig], reporter: Reporter
    ) -> dict[RunConfig, Outcome]:
        """Let processes do a round, and return what has become of some of its runs."""
        _free_memory()
        crew = Crew(shared, self.environments, reporter)
        try:
            crew.work()
        except InputError:
            _forget_unbegun(shared)
            raise
        outcomes = shared.outcomes(runs)
        for run, outcome in outcomes.items():
            if run_id(run) not in crew.screen.told:  # another launcher's workers did it
                failure = outcome.failure
                end: Literal["finished", "failed"] = "failed" if failure else "finished"
                reporter.run_state(run_id(run), end, failure.message if failure else "")
        if all(outcome.failure is None for outcome in outcomes.values()):
            shared.remove()
        return outcomes


def _free_memory() -> None:
    """Leave the GPU to the workers; this process may have planned on it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _forget_unbegun(shared: Round) -> None:
    if shared.units() is None:
        shared.remove()


def _one_gpu_each(num_workers: int | None, device: str) -> list[Mapping[str, str]]:
    """What is set for workers that have a GPU each.

    Raises:
        InputError: there are none, or too few, or the suite is not for a GPU.
    """
    if device == "cpu":
        raise InputError(
            "--launch is gpus, but engine.device is 'cpu': use --launch local --workers N, or set "
            "engine.device to auto"
        )
    count = torch.cuda.device_count()
    if count == 0:
        raise InputError(
            "--launch is gpus, but PyTorch sees no GPU on this machine: `schemabank doctor` says "
            "what is there; on CPUs use --launch local --workers N"
        )
    if num_workers is not None and num_workers > count:
        raise InputError(
            f"--workers is {num_workers}, but {count} GPUs are visible, allowed is one worker a "
            "GPU: use fewer, or leave it out"
        )
    named = os.environ.get(GPUS)
    names = [str(number) for number in range(count)] if named is None else named.split(",")
    return [{GPUS: name.strip()} for name in names[: num_workers or count]]


def _cores_shared(num_workers: int) -> list[Mapping[str, str]]:
    """What is set for workers that share the cores, each as many threads."""
    own = {} if THREADS in os.environ else {THREADS: str(max(1, given_cores() // num_workers))}
    return [own] * num_workers
