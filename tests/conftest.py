"""Fixtures that several files of tests share: the tiny experiment is trained once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runs import Notes, write_config, write_gsm8k, write_model
from schemabank.configfile import load_experiment
from schemabank.experiment import run_experiment
from schemabank.runner import Outcome


@dataclass(frozen=True)
class Finished:
    """The tiny experiment after its runs; tests must not change its folders."""

    model: Path
    data: Path
    config: Path
    out: Path
    base: Outcome
    lora: Outcome
    schemabank: Outcome
    notes: tuple[str, ...]


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
def gsm8k(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tiny GSM8K folder as the data of this test."""
    monkeypatch.setenv("SCHEMABANK_DATA", str(finished.data))
    yield finished.data
