"""Synthetic runs for a test to change, and the command line."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from schemabank.cli import main
from synthetic import GENERATOR, ITEMS, SEEDS


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "runs"
    GENERATOR.write_runs(folder, num_seeds=SEEDS, num_items=ITEMS, full_seeds=SEEDS)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "runs"))


@pytest.fixture
def program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Callable[..., tuple[int, str, str]]]:
    """A command of the command line: from its arguments to exit code, output and messages."""

    def command(name: str) -> Callable[..., tuple[int, str, str]]:
        def run(*arguments: object) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["schemabank", name, *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                main()
            out, err = capsys.readouterr()
            return int(end.value.code or 0), out, err

        return run

    return command
