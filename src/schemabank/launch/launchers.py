"""The ways to start what trains a suite's runs: this process, or workers that share them.

A launcher does what :func:`schemabank.runs.experiment.run_all` does, with the same results. All
processes may be lost and all work begun twice: what counts is on the disk.
"""

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from schemabank.common.cores import given_cores
from schemabank.common.errors import InputError
from schemabank.config.settings import RunConfig
from schemabank.launch.cluster import check_installed, ray_workers
from schemabank.launch.crew import Crew
from schemabank.launch.rounds import Round
from schemabank.launch.sharing import Sharing
from schemabank.runs.experiment import run_all
from schemabank.runs.loading import resolve_device
from schemabank.runs.members import Outcome
from schemabank.runs.progress import Reporter

THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"

LauncherName = Literal["local", "gpus", "ray"]


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
        name: this process or processes of this machine, its GPUs, or a Ray cluster.
        num_workers: how many processes; ``None`` is this one alone, or one for every GPU.
        device: the suite's ``engine.device``.

    Raises:
        InputError: this machine, or the suite, does not allow it.
    """
    if name == "gpus":
        return Workers(environments=_one_gpu_each(num_workers, device), launcher=name)
    if name == "ray":
        return ray_workers(num_workers, device)
    if num_workers is None:
        return run_all
    if resolve_device(device).type == "cuda":
        raise InputError(
            f"--workers is {num_workers}, but the runs use a GPU, which one process fills by "
            "itself: use --launch gpus for a worker on every GPU, or --set engine.device=cpu"
        )
    return Workers(environments=_cores_shared(num_workers))


def check_launcher(name: LauncherName, num_workers: int | None, device: str) -> None:
    """Refuse what :func:`launcher` would, as far as that is known without a cluster of Ray's.

    A cluster may be one that Ray would start here, so none is asked. Arguments are those of
    :func:`launcher`.

    Raises:
        InputError: this machine, or the suite, does not allow it, or Ray is not installed.
    """
    if name == "ray":
        check_installed()
    else:
        launcher(name, num_workers, device)


@dataclass(frozen=True)
class Workers(Sharing):
    """A launcher that starts worker processes on this machine, and shares the work with others.

    Attributes:
        environments: what is set for each process beside our own environment.
        launcher: what the costs of their runs name.
    """

    environments: Sequence[Mapping[str, str]] = field(kw_only=True)
    launcher: LauncherName = "local"

    @property
    def num_workers(self) -> int:
        """How many processes there are."""
        return len(self.environments)

    def work(self, shared: Round, reporter: Reporter) -> Set[str]:
        """Let the processes do a round."""
        crew = Crew(shared, self.environments, reporter, launcher=self.launcher)
        crew.work()
        return crew.screen.told


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
    used = names[: num_workers or count]
    shared = _cores_shared(len(used))
    return [{GPUS: name.strip(), **own} for name, own in zip(used, shared, strict=True)]


def _cores_shared(num_workers: int) -> list[Mapping[str, str]]:
    """What is set for workers that share the cores, each as many threads.

    Threads beyond the cores wait for each other, also those of a process that has a GPU.
    """
    own = {} if THREADS in os.environ else {THREADS: str(max(1, given_cores() // num_workers))}
    return [own] * num_workers
