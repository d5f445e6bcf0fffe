"""Fixtures that several files of tests share, and how tests run: examples, threads, processes.

Nothing here imports torch at once: the process that hands out the tests would take seconds over it
while all others wait for it.
"""

import gc
import os

# Before torch is imported, and for every program that a test starts: processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import parallel
from longer import LONGER, SEEN
from properties import register_profiles

if TYPE_CHECKING:
    from tinyruns import Finished

register_profiles()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means."""
    return parallel.num_workers()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is long, before ``-m`` chooses."""
    name = item.nodeid.removeprefix("tests/")
    if name in LONGER:
        item.add_marker("soak")
        SEEN.add(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests run only where ``-m`` names them, as in ``make soak``; those of a GPU need one."""
    if "soak" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
    if parallel.shared_folder(config) is not None:
        items[:] = parallel.ordered(items, Path(__file__).parent)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the hub whether it is there; what a test puts in its place would not be asked."""
    monkeypatch.setattr("schemabank.common.hub._KNOWN.answers", True)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is imported by now stays: collecting garbage need not look through it ever again.

    Training collects garbage often, and would spend half of a tiny run on modules.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that is marked ``alone`` runs while the other processes wait."""
    folder = parallel.shared_folder(item.config)
    if folder is None:
        return (yield)
    with parallel.beside_others(folder, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tiny models gain nothing from threads, and lose much where processes share the cores."""
    import torch

    real_weights = item.get_closest_marker("integration") is not None
    torch.set_num_threads(parallel.threads_of_real_weights() if real_weights else 1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> "Finished":
    from schemabank.config.file import load_experiment
    from schemabank.runs.experiment import run_experiment
    from tinyruns import Finished, Notes, write_config, write_gsm8k, write_model

    root = tmp_path_factory.mktemp("experiment")
    model, data = write_model(root / "model"), write_gsm8k(root / "data")
    config = write_config(root / "tiny.yaml", model)
    reporter = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(data))
        outcomes = run_experiment(load_experiment(config), root / "runs", reporter)
    return Finished(model, data, config, root / "runs", *outcomes, notes=tuple(reporter.lines))


@pytest.fixture
def gsm8k(finished: "Finished", monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny GSM8K folder as the data of this test."""
    monkeypatch.setenv("SCHEMABANK_DATA", str(finished.data))
    return finished.data
