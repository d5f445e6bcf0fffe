"""Suite files of tiny runs, for tests of what suites do."""

from pathlib import Path
from typing import Any

import yaml

from schemabank.runs.members import Outcome
from schemabank.suites.execution import run_suite
from schemabank.suites.file import Suite
from schemabank.suites.suite import load_suite
from tinyruns import SETTINGS, Finished, Notes

PAPER = Path(__file__).parent.parent / "configs" / "paper"
GRID = {"train.num_train_epochs": [1, 2]}


def write(path: Path, **suite: object) -> Path:
    """Write a suite of the arms lora and schemabank, if it names no others."""
    path.write_text(yaml.safe_dump({"arms": {"lora": {}, "schemabank": {}}, **suite}))
    return path


def tiny(finished: Finished, path: Path, **changes: Any) -> Path:  # noqa: ANN401 -- YAML
    """Write a suite of 8 tiny runs, with some of its parts changed."""
    defaults = {key: value for key, value in SETTINGS.items() if key != "arm"}
    model = {"name": str(finished.model), "dtype": "float32"}
    settings = {**defaults, "model": model, **changes.pop("defaults", {})}
    return write(path, defaults=settings, **{"seeds": [1, 2], "grid": GRID, **changes})


def ran(path: Path, out: Path) -> tuple[Suite, list[Outcome], list[str]]:
    """Run a suite; return it with its final runs, their outcomes, and what was noted."""
    notes = Notes()
    ended = run_suite(load_suite(path), out, notes)
    return ended.suite, list(ended.outcomes), notes.lines
