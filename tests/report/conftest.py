"""Synthetic runs for a test to change."""

import shutil
from pathlib import Path

import pytest

from synthetic import GENERATOR, ITEMS, SEEDS


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "runs"
    GENERATOR.write_runs(folder, num_seeds=SEEDS, num_items=ITEMS, full_seeds=SEEDS)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "runs"))
