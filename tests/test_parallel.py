"""Tests in several processes: their number, their order, and that nobody is beside who is alone."""

import fcntl
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

import parallel

GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "gib", "workers"), [(1, 64, 0), (2, 64, 2), (2, 1, 0), (16, 12, 6), (64, 512, 8)]
)
def test_a_process_for_every_core_while_memory_lasts(
    monkeypatch: pytest.MonkeyPatch, cores: int, gib: int, workers: int
) -> None:
    memory = SimpleNamespace(available=gib * GIB)
    monkeypatch.setattr(parallel, "given_cores", lambda: cores)
    monkeypatch.setattr(parallel.psutil, "virtual_memory", lambda: memory)
    assert parallel.num_workers() == workers


@pytest.mark.parametrize(("workers", "threads"), [("1", 6), ("2", 3), ("4", 1), ("8", 1)])
def test_real_weights_take_their_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, workers: str, threads: int
) -> None:
    monkeypatch.setattr(parallel, "given_cores", lambda: 6)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", workers)
    assert parallel.threads_of_real_weights() == threads


def test_the_longest_files_come_first_and_exist() -> None:
    root = Path(__file__).parent
    assert [name for name in parallel.LONGEST_FIRST if not (root / name).is_file()] == []
    last, first = root / parallel.LONGEST_FIRST[1], root / parallel.LONGEST_FIRST[0]
    items = [SimpleNamespace(path=path) for path in (root / "test_a.py", last, first)]
    found = parallel.ordered(items, root)  # type: ignore[arg-type]
    assert [item.path for item in found] == [first, last, root / "test_a.py"]


def test_who_is_alone_has_nobody_beside_it(tmp_path: Path) -> None:
    spans: list[tuple[float, float, bool]] = []

    def work(alone: bool) -> None:
        for _ in range(5):
            with parallel.beside_others(tmp_path, alone=alone):
                began = time.monotonic()
                time.sleep(0.02)
                spans.append((began, time.monotonic(), alone))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (False, False, True, True)))
    assert len(spans) == 20
    for (_, ended, one), (began, _, other) in combinations(sorted(spans), 2):
        assert ended <= began or not (one or other)


def test_others_run_beside_each_other(tmp_path: Path) -> None:
    with parallel.beside_others(tmp_path, alone=False), (tmp_path / "running").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
