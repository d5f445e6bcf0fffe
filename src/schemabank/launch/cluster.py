"""Workers on a Ray cluster: each is a task of Ray's, which a lost node loses and another one gets.

Ray hands out no units. A task takes part in the work as any worker does, by claims on the suite's
folder, until the round is over. So what Ray does again changes nothing. It does so without end
(``max_retries=-1``), since only a lost process is tried again and no error of ours. The process
ends with its task (``max_calls=1``), which gives the GPU's memory back.
"""

import importlib
import os
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from schemabank.common.errors import InputError, first_line
from schemabank.common.extras import require
from schemabank.common.waiting import waiting
from schemabank.launch.crew import SAVING_S
from schemabank.launch.messages import Sender
from schemabank.launch.progress import RoundProgress
from schemabank.launch.rounds import Round, Unit
from schemabank.launch.sharing import Sharing
from schemabank.launch.worker import PAUSE_S, work_on
from schemabank.runs.folder import is_finished
from schemabank.runs.progress import Reporter

USE = "--launch ray"


@dataclass(frozen=True)
class RayWorkers(Sharing):
    """A launcher whose workers are tasks on a Ray cluster, which sees the folder of the runs.

    Attributes:
        tasks: how many workers.
        resources: what Ray gives each, as its decorator takes them.
    """

    tasks: int = field(kw_only=True)
    resources: Mapping[str, float] = field(kw_only=True)

    @property
    def num_workers(self) -> int:
        """How many tasks there are."""
        return self.tasks

    def work(self, shared: Round, reporter: Reporter) -> Set[str]:
        """Let tasks do a round until it is over."""
        ray = _ray()
        options = {**self.resources, "max_retries": -1, "max_calls": 1}
        task = ray.remote(**options)(do_on_cluster)
        left = [task.remote(str(shared.folder.resolve())) for _ in range(self.tasks)]
        progress, told = RoundProgress(shared, reporter, self.tasks), set[str]()
        try:
            with waiting("waiting for the next part to be done", reporter.note) as wait:
                while not progress.is_over():
                    left = _still_going(ray, left)
                    for unit in progress.done():
                        told |= _tell(unit, shared, progress, reporter)
                        wait.goes_on()
        except BaseException:
            _let_save(ray, left)
            raise
        finally:
            for each in left:  # one may be stopped, and what it held was done elsewhere
                ray.cancel(each, force=True)
        progress.close()
        return told


def ray_workers(num_workers: int | None, device: str) -> RayWorkers:
    """Connect to a cluster, and return a launcher with a worker on each GPU, or each CPU.

    Ray itself honours ``RAY_ADDRESS`` and ``RAY_AUTH_TOKEN``; without an address, it starts a
    cluster on this machine.

    Args:
        num_workers: how many; ``None`` is as many as the cluster has room for now.
        device: the suite's ``engine.device``.

    Raises:
        InputError: Ray is not installed or not reached, or the cluster is not for these runs.
    """
    require("ray", USE)
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS", "none, so a cluster of this machine")
            raise InputError(
                f"{USE} cannot reach a cluster ({first_line(error)}), RAY_ADDRESS is {address}: "
                "start one with `ray start --head`, or set RAY_ADDRESS and RAY_AUTH_TOKEN"
            ) from error
    there = ray.cluster_resources()
    on_gpus = device != "cpu" and there.get("GPU", 0) >= 1
    if on_gpus and not torch.cuda.is_available():
        raise InputError(
            f"{USE}: the cluster has GPUs, but this process sees none, and the runs' precision "
            "follows the device: start it on a node with a GPU, or --set engine.device=cpu"
        )
    kind: Literal["GPU", "CPU"] = "GPU" if on_gpus else "CPU"
    count = int(there.get(kind, 0))
    if count == 0:
        raise InputError(f"{USE}: the cluster has no {kind}: add a node that has one")
    resources = {"num_gpus": 1.0} if on_gpus else {"num_cpus": 1.0}
    return RayWorkers(tasks=num_workers or count, resources=resources)


def do_on_cluster(folder: str) -> None:
    """Do units of a round, in a task; its progress is seen by the units' records."""
    work_on(Path(folder), Sender(None, speaks=False))


def _still_going(ray: ModuleType, left: list[Any]) -> list[Any]:
    """Wait a moment, and return the tasks that have not ended.

    Raises:
        InputError: one refused its settings.
        RuntimeError: one ended by another error.
    """
    if not left:  # all have seen that all is done, and so will we
        time.sleep(PAUSE_S)
        return left
    ended, going = ray.wait(left, num_returns=1, timeout=PAUSE_S)
    for each in ended:
        try:
            ray.get(each)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise RuntimeError(f"a worker on the cluster failed: {error.cause!r}") from error
    return list(going)


def _let_save(ray: ModuleType, left: list[Any]) -> None:
    """Interrupt the tasks, and wait until all have saved where their runs stand."""
    for each in left:
        ray.cancel(each, force=False)
    if left:
        ray.wait(left, num_returns=len(left), timeout=SAVING_S)


def _tell(unit: Unit, shared: Round, progress: RoundProgress, reporter: Reporter) -> set[str]:
    """Tell the ends of a unit's runs."""
    failed = {row["run_id"]: row for row in (progress.queue.record(unit.name) or {})["failed"]}
    for name in unit.runs:
        row = failed.get(name)
        if row is None or is_finished(shared.out / name):
            reporter.run_state(name, "finished")
        else:
            reporter.run_state(name, "failed", str(row["failure"]))
    return set(unit.runs)


def _ray() -> ModuleType:
    """Ray, which is an extra, and takes seconds to import."""
    return importlib.import_module("ray")
