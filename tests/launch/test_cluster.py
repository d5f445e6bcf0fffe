"""Workers on Ray. What needs a cluster starts a small one where Ray is installed, else is skipped.

``pip install 'schemabank[ray]'`` lets it run.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from schemabank.common.errors import InputError
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch import cluster
from schemabank.launch.cluster import RayWorkers, ray_workers
from schemabank.launch.crew import ENDING_S, SAVING_S
from schemabank.launch.queue import Lease
from schemabank.launch.rounds import PLAN, ROUNDS, WORK, Round, Unit, open_round, read_round
from schemabank.launch.worker import PAUSE_S
from schemabank.runs.folder import COST
from schemabank.runs.stored import read_cost
from schemabank.suites.execution import run_suite
from schemabank.suites.suite import load_suite
from tinyruns import Finished, Notes, snapshot
from tinysuites import ran, tiny

ONE_EPOCH = {"train": {"num_train_epochs": 1, "learning_rate": 1e-2}}


def connected(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    """Let a cluster be there that has these resources, and no more."""
    there = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: resources)
    monkeypatch.setattr(cluster, "_ray", lambda: there)
    monkeypatch.setattr(cluster, "require", lambda *_: None)


def test_where_ray_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--launch ray needs .* `pip install 'schemabank\[ray\]'"):
        ray_workers(None, "auto")


def test_every_gpu_of_a_cluster_has_a_worker_or_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    connected(monkeypatch, GPU=3.0, CPU=40.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu, cpu = {"num_gpus": 1.0}, {"num_cpus": 1.0}
    assert ray_workers(None, "auto") == RayWorkers(tasks=3, resources=gpu)
    assert ray_workers(8, "cuda") == RayWorkers(tasks=8, resources=gpu)
    assert ray_workers(None, "cpu") == RayWorkers(tasks=40, resources=cpu)
    connected(monkeypatch, CPU=2.0)
    assert ray_workers(None, "auto") == RayWorkers(tasks=2, resources=cpu)
    connected(monkeypatch)
    with pytest.raises(InputError, match="the cluster has no CPU"):
        ray_workers(None, "auto")


def test_a_driver_without_a_gpu_is_refused_by_a_cluster_of_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected(monkeypatch, GPU=3.0, CPU=40.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="start it on a node with a GPU"):
        ray_workers(None, "auto")
    assert ray_workers(1, "cpu") == RayWorkers(tasks=1, resources={"num_cpus": 1.0})


class RayError(Exception):
    cause = KeyError("weights")


class Ray:
    """Stands in for the package: its tasks end as they are told, the first ones first.

    Args:
        work: does what a task does, given its number, folder and name; what it returns names the
            exception that the task ends with, or is ``None`` for one that has no more to do.
    """

    def __init__(self, work: Callable[[int, Path, str], str | None]) -> None:
        names = ("RayTaskError", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError")
        names += ("RuntimeEnvSetupError",)
        kinds: dict[str, type[Exception]] = {name: type(name, (RayError,), {}) for name in names}
        self.exceptions = SimpleNamespace(**kinds, RayError=RayError)
        self.waited: list[tuple[int, int, float]] = []
        self.cancelled: list[bool] = []
        self.options: Mapping[str, object] = {}
        self.num_tasks: list[int] = []
        self._work, self._ends = work, list[str | None]()

    def remote(self, **options: object) -> Callable[[object], SimpleNamespace]:
        self.options = options
        return lambda _: SimpleNamespace(remote=self._start)

    def _start(self, folder: str, name: str, num_tasks: int) -> int:
        self.num_tasks.append(num_tasks)
        self._ends.append(self._work(len(self._ends), Path(folder), name))
        return len(self._ends) - 1

    def wait(
        self, left: Sequence[int], *, num_returns: int, timeout: float
    ) -> tuple[Sequence[int], Sequence[int]]:
        self.waited.append((len(left), num_returns, timeout))
        return left[:1], left[1:]

    def get(self, reference: int) -> None:
        if (end := self._ends[reference]) is not None:
            raise getattr(self.exceptions, end)

    def cancel(self, _: int, *, force: bool) -> None:
        self.cancelled.append(force)


RUNS = [RunConfig(arm="lora")]


def on(ray: object, out: Path, monkeypatch: pytest.MonkeyPatch, *, tasks: int = 1) -> Notes:
    """Let tasks do a round of one unit."""
    monkeypatch.setattr(cluster, "_ray", lambda: ray)
    notes = Notes()
    RayWorkers(tasks=tasks, resources={}).work(opened(out), notes)
    return notes


def opened(out: Path) -> Round:
    found = open_round(RUNS, out, planned=RUNS, num_workers=2, lease_s=9.0)
    found.decide([Unit("1", [run_id(RUNS[0])], [], 1)])
    return found


def held(folder: Path, name: str) -> Lease:
    lease = read_round(folder).queue.claim("1")
    assert lease is not None
    lease.begin(name, {})
    return lease


def test_interrupted_tasks_save_before_they_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The force that ends a task at once comes last."""
    ray = Ray(lambda *_: None)

    def interrupted(
        left: Sequence[int], *, num_returns: int, timeout: float
    ) -> tuple[Sequence[int], Sequence[int]]:
        ray.waited.append((len(left), num_returns, timeout))
        if num_returns < len(left):
            raise KeyboardInterrupt
        return ([], left) if timeout == ENDING_S else (left, [])

    monkeypatch.setattr(ray, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on(ray, tmp_path, monkeypatch, tasks=2)
    assert ray.waited == [(2, 1, PAUSE_S), (2, 2, ENDING_S), (2, 2, SAVING_S)]
    assert ray.cancelled == [False, False, True, True]
    assert ray.num_tasks == [2, 2], "for what the runs cost"


def test_what_a_lost_task_held_is_free_at_once_and_another_task_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = ["WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", None]

    def work(number: int, folder: Path, name: str) -> str | None:
        lease = held(folder, name)
        if ends[number] is None:
            lease.done({"failed": [{"run_id": run_id(RUNS[0]), "failure": "no"}]})
        return ends[number]

    ray = Ray(work)
    notes = on(ray, tmp_path, monkeypatch)
    assert ray.options == {"max_retries": 0, "max_calls": 1}, "Ray itself tries nothing again"
    names = {path.name for path in tmp_path.glob(f"{ROUNDS}/*/{WORK}/1/*-[0-9]")}
    assert names >= {"crashed-1", "lost-2", "crashed-3", "done-4"}
    assert [line for line in notes.lines if "lost" in line] == [
        f"worker 1 was lost ({end}), another one is started" for end in ends[:3]
    ]


def test_tasks_that_end_before_they_begin_are_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Ray(lambda *_: "WorkerCrashedError")
    with pytest.raises(RuntimeError, match=r"end before they begin \(WorkerCrashedError\)"):
        on(ray, tmp_path, monkeypatch, tasks=2)


def test_errors_that_every_task_ends_with_are_not_met_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of an environment that cannot be set up: no machine was taken away."""

    def work(number: int, folder: Path, name: str) -> str:
        if number == 20:
            held(folder, name).done({"failed": []})
        return "RuntimeEnvSetupError"

    with pytest.raises(RuntimeError, match=r"before they begin \(RuntimeEnvSetupError\)"):
        on(Ray(work), tmp_path, monkeypatch)


def test_tasks_that_are_lost_while_they_plan_have_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(number: int, folder: Path, name: str) -> str:
        assert number < 2
        lease = read_round(folder).queue.claim(PLAN)
        assert lease is not None
        lease.begin(name, {})
        return "OutOfMemoryError"

    with pytest.raises(RuntimeError, match=r"end before they begin \(OutOfMemoryError\)"):
        on(Ray(work), tmp_path, monkeypatch)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_task_that_is_lost_when_all_is_done_is_not_replaced(
    is_gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another call may have removed the round by then."""

    def work(number: int, folder: Path, name: str) -> str:
        assert number == 0
        held(folder, name).done({"failed": []})
        if is_gone:
            shutil.rmtree(folder)
        return "WorkerCrashedError"

    assert not any("lost" in line for line in on(Ray(work), tmp_path, monkeypatch).lines)


def test_machines_that_are_taken_away_are_followed_by_others_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(number: int, folder: Path, name: str) -> str | None:
        if number < 50:
            return "NodeDiedError"
        held(folder, name).done({"failed": []})
        return None

    on(Ray(work), tmp_path, monkeypatch)


def test_tasks_that_get_nothing_done_are_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_: int, folder: Path, name: str) -> str:
        held(folder, name).end("crashed")
        return "RayTaskError"

    with pytest.raises(RuntimeError, match=r"^6 workers were lost .* \(KeyError\('weights'\)\)"):
        on(Ray(work), tmp_path, monkeypatch)


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    paths = [str(Path(__file__).parents[2] / "src"), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("gsm8k", "two_cpus")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cluster_comes_to_the_records_of_one_process(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread, as Ray gives its tasks."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tiny(finished, tmp_path / "s.yaml", grid={}, defaults=ONE_EPOCH)
    _, outcomes, _ = ran(path, tmp_path / "alone")
    torch.set_num_threads(before)
    notes, workers = Notes(), replace(ray_workers(2, "cpu"), lease_s=20.0)
    ended = run_suite(load_suite(path), tmp_path / "shared", notes, launcher=workers)
    assert [o.result for o in ended.outcomes] == [o.result for o in outcomes]
    kept = [
        {name: mark for name, (_, mark) in snapshot(tmp_path / place).items() if "cost" not in name}
        for place in ("alone", "shared")
    ]
    assert kept[0] == kept[1]
    costs = [read_cost(outcome.folder / COST) for outcome in ended.outcomes]
    assert [(cost["launcher"], cost["workers"]) for cost in costs] == [("ray", 2)] * len(costs)
    assert {run: state[-1][0] for run, state in notes.states.items()} == dict.fromkeys(
        notes.titles, "finished"
    )
