"""Learning curves: the training loss of every arm over its steps, with a band over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from schemabank.basesettings import LARGEST
from schemabank.errors import InputError
from schemabank.files import is_number, json_lines
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import ReportedRun, RunSet
from schemabank.rundir import METRICS

NUM_POINTS = 60
NEEDED: Mapping[str, Any] = {
    "loss": float | int | None,
    "stage": str,
    "step": int,
    "num_tokens": int,
}
NUMBERS = ("loss", "step", "num_tokens")
MOST_SEEDS = 16  # of an arm at a setting, the first in the order of the runs


@dataclass(frozen=True)
class Point:
    """The mean loss in nats per token up to a step, and the smallest and largest over seeds."""

    step: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class StageStart:
    """Where a stage begins; steps count from 1."""

    name: str
    first_step: int


@dataclass(frozen=True)
class Curve:
    """One arm at one setting.

    Attributes:
        arm, setting: of its runs.
        num_seeds: that it is drawn from.
        num_runs: that there are.
        mean_tokens: that a run saw, padding left out; of the runs it is drawn from.
        points: means over equal windows of steps.
        stages: in their order.
    """

    arm: str
    setting: str = field(metadata=EPOCHS)
    num_seeds: int
    num_runs: int
    mean_tokens: float
    points: list[Point]
    stages: list[StageStart]


def curves(runs: RunSet) -> list[Curve]:
    """Read the logs of the first seeds of every arm and setting; runs without one are left out.

    Raises:
        InputError: a log is malformed.
    """
    found = []
    for (arm, setting), own in runs.at().items():
        logs = [log for run in own[:MOST_SEEDS] if (log := _log(run))]
        if logs:
            found.append(_curve(arm, setting, logs, len(own)))
    return found


def _curve(arm: str, setting: str, logs: Sequence[Sequence[Any]], num_runs: int) -> Curve:
    windows = [_windows(log) for log in logs]
    points = []
    for place, last in enumerate(_ends(max(map(len, logs)))):
        values = [own[place] for own in windows if place < len(own) and own[place] is not None]
        means = [value for value in values if value is not None]
        if means:
            mean = fsum(means) / len(means)
            points.append(Point(last, mean, min(means), max(means)))
    stages: dict[str, int] = {}
    for row in logs[0]:
        stages.setdefault(row["stage"], row["step"] + 1)
    tokens = [sum(row["num_tokens"] for row in log) for log in logs]
    return Curve(
        arm=arm,
        setting=setting,
        num_seeds=len(logs),
        num_runs=num_runs,
        mean_tokens=fsum(tokens) / len(tokens),
        points=points,
        stages=[StageStart(name, first) for name, first in stages.items()],
    )


def _ends(num_steps: int) -> list[int]:
    """The last step, counted from 1, of every window."""
    num = min(NUM_POINTS, num_steps)
    return [round((n + 1) * num_steps / num) for n in range(num)]


def _windows(log: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The mean loss in every window of steps; ``None`` where no step has one."""
    means, first = [], 0
    for end in _ends(len(log)):
        losses = [row["loss"] for row in log[first:end] if row["loss"] is not None]
        means.append(fsum(losses) / len(losses) if losses else None)
        first = end
    return means


def _log(run: ReportedRun) -> list[Mapping[str, Any]]:
    path = run.folder / METRICS
    if not path.exists():
        return []
    rows: list[Mapping[str, Any]] = []
    for where, row in json_lines(path):
        wrong = [name for name, kind in NEEDED.items() if not isinstance(row.get(name), kind)]
        numbers = {name: row.get(name) for name in NUMBERS if row.get(name) is not None}
        wrong += [name for name, value in numbers.items() if not is_number(value, at_most=LARGEST)]
        if wrong:
            raise InputError(
                f"{where} is no log of a run ({wrong[0]} is {row.get(wrong[0])!r:.60}, which is "
                "not as it was written): restore it, or move it away"
            )
        rows.append(row)
    return rows
