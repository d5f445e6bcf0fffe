"""Tests in several processes: how many, in which order, and who must be alone.

Files are handed out whole, so that what a module's fixtures build is built once. The files that
take longest come first; otherwise one of them may begin when all others are through.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from schemabank.common.cores import given_cores

# torch, the tiny models and the embedded one; real weights are in one file, so in one process.
MEMORY_OF_A_WORKER = 2 * 2**30
MOST_WORKERS = 8
LONGEST_FIRST = (
    "engine/test_cohort.py",
    "integration/test_smollm2.py",
    "runs/test_experiment.py",
    "runs/test_tuner.py",
    "suites/test_execution.py",
    "methods/test_methods.py",
    "runs/test_going_on.py",
    "test_original.py",
    "runs/test_resuming.py",
    "runs/test_programsaves.py",
    "report/page/test_html.py",
    "runs/test_rescale.py",
    "engine/decoding/test_decode.py",
    "trainer/test_parity.py",
    "test_architectures_dense.py",
    "runs/test_together.py",
    "runs/test_validating.py",
    "sandbox/test_hostile.py",
    "report/sections/test_charts.py",
    "stats/test_coverage.py",
    "sandbox/test_grade.py",
    "methods/test_plugin.py",
    "faults/test_campaigns.py",
    "launch/test_launchers.py",
    "report/routing/test_command.py",
    "trainer/test_mixin.py",
    "trainer/test_trl.py",
    "test_damaged.py",
    "runs/test_distill.py",
    "report/warnings/test_training.py",
    "runs/test_trackers.py",
    "trainer/test_processes.py",
    "integration/test_records.py",
    "test_endings.py",
    "test_examples.py",
    "engine/decoding/test_slotwise.py",
    "launch/test_crew.py",
    "report/test_files.py",
    "report/test_suite.py",
    "test_pages.py",
    "test_without_extras.py",
    "test_architectures_recurrent.py",
    "adapters/test_peftcheck.py",
    "engine/test_muon.py",
    "test_cli.py",
)


def num_workers() -> int:
    """One process a core, fewer where memory is short; with one there is nothing to hand out."""
    in_memory = psutil.virtual_memory().available // MEMORY_OF_A_WORKER
    workers: int = min(given_cores(), in_memory, MOST_WORKERS)
    return workers if workers > 1 else 0


def ordered(items: Sequence[pytest.Item], root: Path) -> list[pytest.Item]:
    """The files that take longest first; the order within a file stays."""
    ranks = {root / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    return sorted(items, key=lambda item: ranks.get(item.path, len(ranks)))


@contextmanager
def beside_others(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock while a test runs: all tests share it, one that must be alone has it for itself.

    Whoever wants the lock passes a gate first. A test that must be alone waits for the others
    inside the gate, so that no new one starts before it.

    Args:
        folder: one that all processes of this run of pytest share.
        alone: whether no other test may run meanwhile.
    """
    with (folder / "gate").open("w") as gate, (folder / "running").open("w") as running:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def shared_folder(config: pytest.Config) -> Path | None:
    """The folder of this run of pytest if it has several processes."""
    if not hasattr(config, "workerinput"):
        return None
    own: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return own.parent


def threads_of_real_weights() -> int:
    """Threads for real weights in this process: the cores, divided among the processes."""
    return max(1, given_cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
