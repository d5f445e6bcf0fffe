"""Workers on Ray. What needs a cluster starts a small one where Ray is installed, else is skipped.

``pip install 'schemabank[ray]'`` lets it run.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from schemabank.common.errors import InputError
from schemabank.config.settings import RunConfig
from schemabank.launch import cluster
from schemabank.launch.cluster import RayWorkers, ray_workers
from schemabank.launch.crew import SAVING_S
from schemabank.launch.rounds import open_round
from schemabank.launch.worker import PAUSE_S
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


def test_interrupted_tasks_save_before_they_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The force that ends a task at once comes last."""
    done: list[object] = []

    def remote(**_: object) -> Callable[[object], SimpleNamespace]:
        return lambda _: SimpleNamespace(remote=lambda folder: f"task of {folder}")

    def wait(left: Sequence[object], *, num_returns: int, timeout: float) -> None:
        done.append((len(left), num_returns, timeout))
        if num_returns < len(left):
            raise KeyboardInterrupt

    there = SimpleNamespace(remote=remote, wait=wait, cancel=lambda _, *, force: done.append(force))
    monkeypatch.setattr(cluster, "_ray", lambda: there)
    runs = [RunConfig(arm="lora")]
    shared = open_round(runs, tmp_path, planned=runs, num_workers=2, lease_s=9.0)
    with pytest.raises(KeyboardInterrupt):
        RayWorkers(tasks=2, resources={}).work(shared, Notes())
    assert done == [(2, 1, PAUSE_S), False, False, (2, 2, SAVING_S), True, True]


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
    assert {run: state[-1][0] for run, state in notes.states.items()} == dict.fromkeys(
        notes.titles, "finished"
    )
