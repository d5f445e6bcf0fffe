"""``metrics.jsonl`` of the runs of a cohort: one line a step."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Self, TextIO

from schemabank.common.failure import failure_of
from schemabank.engine.cohort import Cohort, RunStep


class StepLogs:
    """``metrics.jsonl`` of every run: one line a step. A run whose log cannot be written fails.

    Args:
        paths: by the run's id; a file begins with the run's first step.
        cohort: whose runs they are; their slots stay the same when it is halted and resumed.
    """

    def __init__(self, paths: Mapping[str, Path], cohort: Cohort) -> None:
        self._paths, self._files = paths, dict[str, TextIO]()
        self._lost: set[str] = set()
        self._slots = {slot.run.name: slot for slot in cohort.slots}

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close all files; what still waits to be written may fail now."""
        for name, file in self._files.items():
            try:
                file.close()
            except OSError as error:
                self._lose(name, error)

    def write(self, step: RunStep) -> None:
        """Write a step's line, but for a run that has lost its log."""
        if step.run in self._lost:
            return
        try:
            if step.run not in self._files:
                self._files[step.run] = self._paths[step.run].open("w", encoding="utf-8")
            self._files[step.run].write(_json_line(step))
        except OSError as error:
            self._lose(step.run, error)

    def _lose(self, name: str, error: OSError) -> None:
        self._lost.add(name)
        slot = self._slots[name]
        slot.failure = slot.failure or failure_of(error)


def _json_line(step: RunStep) -> str:
    """One line of ``metrics.jsonl``; JSON has no NaN or infinity, so they become null."""
    row = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in _flat(step).items()
    }
    return json.dumps(row, allow_nan=False) + "\n"


def _flat(step: RunStep) -> dict[str, object]:
    row: dict[str, object] = asdict(step)
    del row["logged"]
    return row | {name: value for name, value in step.logged.items() if name not in row}
