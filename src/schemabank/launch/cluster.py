"""Workers on a Ray cluster: each is a task of Ray's, which a lost node loses and another one gets.

Ray hands out no units. A task takes part in the work as any worker does, by claims on the suite's
folder, until the round is over. The driver starts a lost task again, and not Ray
(``max_retries=0``), since it has to know which unit the task held. The process ends with its task
(``max_calls=1``), which gives the GPU's memory back.
"""

import importlib
import os
import time
import uuid
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from schemabank.common.errors import InputError, first_line
from schemabank.common.extras import require
from schemabank.common.waiting import waiting
from schemabank.launch.crew import ENDING_S, MOST_FRUITLESS, SAVING_S
from schemabank.launch.messages import Sender
from schemabank.launch.progress import RoundProgress
from schemabank.launch.queue import MOST_CRASHES, End
from schemabank.launch.rounds import PLAN, Round, Unit
from schemabank.launch.sharing import Sharing
from schemabank.launch.worker import PAUSE_S, work_on
from schemabank.runs.folder import is_finished
from schemabank.runs.launched import Launched
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
        """Let tasks do a round until it is over.

        Raises:
            InputError: something in the settings cannot be had.
            RuntimeError: tasks end before they begin, or one after the other before the end.
        """
        progress = RoundProgress(shared, reporter, self.tasks)
        tasks = Tasks(_ray(), shared, self.resources, reporter, progress)
        try:
            for number in range(self.tasks):
                tasks.start(number)
            with waiting("waiting for the next part to be done", reporter.note) as wait:
                while not progress.is_over():
                    num_told = len(tasks.told)
                    tasks.look()
                    tasks.tell_done()
                    if len(tasks.told) > num_told:
                        wait.goes_on()
        except BaseException:
            tasks.let_save()
            raise
        finally:
            tasks.end()
        progress.close()
        return tasks.told


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
    check_installed()
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


def check_installed() -> None:
    """Make sure that Ray is there; nothing is started, and no cluster is asked.

    Raises:
        InputError: it is not installed.
    """
    require("ray", USE)


def do_on_cluster(folder: str, name: str, num_tasks: int) -> None:
    """Do units of a round, in a task; its progress is seen by the units' records."""
    launched = Launched("ray", num_tasks)
    work_on(Path(folder), Sender(None, speaks=False), launched=launched, name=name)


@dataclass(frozen=True)
class _Task:
    """A worker on the cluster.

    Attributes:
        number: of the worker.
        name: under which this task of it holds units.
        num_fruitless: tasks of this number in a row before it that ended before they began.
    """

    number: int
    name: str
    num_fruitless: int


class Tasks:
    """The tasks of a round: started, started again when they are lost, ended.

    Ray can start a lost task again by itself, but then nobody learns that it was lost: a unit that
    kills its process would be tried for ever. So a lost task is told from here, and what it held is
    free at once.

    Args:
        ray: the package.
        shared: the round.
        resources: what Ray gives each task.
        reporter: where what becomes of tasks and runs goes.
        progress: how far the round is.

    Attributes:
        told: the runs of which the end was told.
    """

    def __init__(
        self,
        ray: ModuleType,
        shared: Round,
        resources: Mapping[str, float],
        reporter: Reporter,
        progress: RoundProgress,
    ) -> None:
        self.told = set[str]()
        self._ray, self._shared, self._reporter = ray, shared, reporter
        self._progress = progress
        self._task = ray.remote(**resources, max_retries=0, max_calls=1)(do_on_cluster)
        self._call, self._count = uuid.uuid4().hex, 0
        self._left: dict[Any, _Task] = {}
        self._num_lost = 0  # since a unit was done

    def start(self, number: int, num_fruitless: int = 0) -> None:
        """Start a task of a worker."""
        self._count += 1
        name = f"{self._call}-{self._count}"
        folder, num_tasks = str(self._shared.folder.resolve()), self._progress.num_workers
        reference = self._task.remote(folder, name, num_tasks)
        self._left[reference] = _Task(number, name, num_fruitless)

    def look(self) -> None:
        """Wait a moment, and see which tasks have ended.

        Raises:
            InputError: one refused its settings.
            RuntimeError: tasks end before they begin, or one after the other before the end.
        """
        if not self._left:  # all have seen that all is done, and so will we
            time.sleep(PAUSE_S)
            return
        ended, _ = self._ray.wait([*self._left], num_returns=1, timeout=PAUSE_S)
        for reference in ended:
            self._ended(reference, self._left.pop(reference))

    def tell_done(self) -> None:
        """Tell the ends of the runs of units that were done."""
        for unit in self._progress.done():
            self.told |= _tell(unit, self._shared, self._progress, self._reporter)
            self._num_lost = 0

    def let_save(self) -> None:
        """Interrupt the tasks, and wait until all have saved where their runs stand."""
        for reference in self._left:
            self._ray.cancel(reference, force=False)
        if self._left and not self._all_ended(ENDING_S):
            self._reporter.note("waiting for the workers to save; another signal ends at once")
            self._all_ended(SAVING_S)

    def _all_ended(self, wait_s: float) -> bool:
        _, going = self._ray.wait([*self._left], num_returns=len(self._left), timeout=wait_s)
        return not going

    def end(self) -> None:
        """End all tasks; one may be stopped, and what it held was done elsewhere."""
        for reference in self._left:
            self._ray.cancel(reference, force=True)

    def _ended(self, reference: Any, task: _Task) -> None:  # noqa: ANN401 -- Ray's own
        """See why a task ended, and start another one unless all is done.

        Only of machines that are taken away there is no end. Ray also has errors, such as of an
        environment that cannot be set up, which every task would end with.
        """
        exceptions = self._ray.exceptions
        how: End | None = None
        try:
            self._ray.get(reference)
        except exceptions.RayTaskError as error:  # what it held it has given free
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            why = repr(error.cause)
        except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError) as error:
            how, why = "crashed", type(error).__name__
        except exceptions.RayError as error:
            how, why = "lost", type(error).__name__
        else:
            return
        self.tell_done()
        if self._progress.is_over():  # and the round may be gone
            return
        if how is not None:
            self._give_free(task, how)
        self._replace(task, why, is_taken=why == exceptions.NodeDiedError.__name__)

    def _give_free(self, task: _Task, how: End) -> None:
        for lease in self._shared.queue.held_by(task.name):
            lease.end(how)

    def _replace(self, task: _Task, why: str, *, is_taken: bool) -> None:
        """Start another task in place of one that was lost, if there is hope for it.

        Args:
            task: that was lost.
            why: for the screen.
            is_taken: whether its machine was taken away, of which there is no end.

        Raises:
            RuntimeError: there is none.
        """
        self._num_lost += not is_taken
        fruitless = not is_taken and not self._shared.queue.begun_by(task.name) - {PLAN}
        num_fruitless = task.num_fruitless + 1 if fruitless else 0
        who = f"worker {task.number + 1}"
        if num_fruitless >= MOST_FRUITLESS:
            if not self._left:
                raise RuntimeError(f"workers on the cluster end before they begin ({why})")
            self._reporter.note(f"{who} ends before it begins ({why}): left out")
            return
        if self._num_lost > MOST_CRASHES * self._progress.num_workers:
            raise RuntimeError(f"{self._num_lost} workers were lost and no part was done ({why})")
        self._reporter.note(f"{who} was lost ({why}), another one is started")
        self.start(task.number, num_fruitless)


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
