"""Fixtures that several files of tests share: the tiny experiment is trained once."""

import os
from pathlib import Path

import pytest
import torch

from runs import Finished, Notes, write_config, write_gsm8k, write_model
from schemabank.configfile import load_experiment
from schemabank.experiment import run_experiment


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tiny models gain nothing from threads, and lose much where processes share the cores."""
    real_weights = item.get_closest_marker("integration") is not None
    torch.set_num_threads((os.cpu_count() or 1) if real_weights else 1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("experiment")
    model, data = write_model(root / "model"), write_gsm8k(root / "data")
    config = write_config(root / "tiny.yaml", model)
    reporter = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(data))
        outcomes = run_experiment(load_experiment(config), root / "runs", reporter)
    return Finished(model, data, config, root / "runs", *outcomes, notes=tuple(reporter.lines))


@pytest.fixture
def gsm8k(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny GSM8K folder as the data of this test."""
    monkeypatch.setenv("SCHEMABANK_DATA", str(finished.data))
    return finished.data
