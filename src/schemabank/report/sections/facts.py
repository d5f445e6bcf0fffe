"""What runs cost, how their completions ended, and where all figures come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import Left, ReportedRun, RunSet
from schemabank.report.sections.curves import Curve
from schemabank.rundir import COST
from schemabank.runfiles import read_cost

ENDINGS = ("ended_ratio", "length_limit_ratio", "mean_new_tokens", "unparsable_ratio")
PEAKS = ("peak_host_memory_gib", "peak_device_memory_gib")


@dataclass(frozen=True)
class Behaviour:
    """How an arm's completions ended: shares of all of them, and their mean length.

    Attributes:
        arm, setting: of the runs.
        trained: whether the arm trains anything.
        ended_ratio: ended by themselves.
        at_limit_ratio: ran to the token limit.
        mean_new_tokens: of a completion.
        read_ratio: held something that could be read as an answer.
    """

    arm: str
    setting: str = field(metadata=EPOCHS)
    trained: bool
    ended_ratio: float
    at_limit_ratio: float
    mean_new_tokens: float
    read_ratio: float


@dataclass(frozen=True)
class Cost:
    """Means a run; seconds are the cohort's wall clock over its runs, memory is the largest."""

    arm: str
    setting: str = field(metadata=EPOCHS)
    runs: int
    num_steps: float
    num_lora_updates: float
    num_trained_parameters: float
    tokens: float | None
    training_s: float | None
    evaluation_s: float | None
    peak_host_memory_gib: float | None
    peak_device_memory_gib: float | None


@dataclass(frozen=True)
class Source:
    """One run of the report."""

    run_id: str
    arm: str
    seed: int
    setting: str = field(metadata=EPOCHS)


@dataclass(frozen=True)
class Provenance:
    """Where the figures come from, and what is not in them."""

    runs: list[Source]
    versions: dict[str, list[str]]
    models: list[str]
    tasks: list[str]
    dtypes: list[str]
    failed: Sequence[Left]
    failed_trials: Sequence[Left]
    excluded: Sequence[Left]
    unfinished: Sequence[str]


def behaviour(runs: RunSet, group: str) -> list[Behaviour]:
    """Return how completions ended, arm by arm; nothing where none were decoded."""
    found = []
    for (arm, setting), own in _by_place(runs).items():
        summaries = [run.result["groups"][group] for run in own]
        if all(summary.get(name) is not None for summary in summaries for name in ENDINGS):
            found.append(
                Behaviour(
                    arm=arm,
                    setting=setting,
                    trained=own[0].trained,
                    ended_ratio=_mean(summaries, "ended_ratio"),
                    at_limit_ratio=_mean(summaries, "length_limit_ratio"),
                    mean_new_tokens=_mean(summaries, "mean_new_tokens"),
                    read_ratio=1 - _mean(summaries, "unparsable_ratio"),
                )
            )
    return found


def costs(runs: RunSet, found: Sequence[Curve]) -> list[Cost]:
    """Return what every arm cost at every setting."""
    tokens = {(curve.arm, curve.setting): curve.mean_tokens for curve in found}
    return [_cost(arm, setting, own, tokens) for (arm, setting), own in runs.at().items()]


def provenance(runs: RunSet) -> Provenance:
    """Return which runs, versions, models and tasks the figures come from."""

    def distinct(of: Callable[[ReportedRun], object]) -> list[str]:
        return list(dict.fromkeys(str(of(run)) for run in runs.runs))

    versions: dict[str, dict[str, None]] = {}
    for run in runs.runs:
        for name, version in run.result["versions"].items():
            if version is not None:
                versions.setdefault(name, {})[version] = None
    return Provenance(
        runs=[Source(run.run_id, run.arm, run.seed, run.setting) for run in runs.runs],
        versions={name: list(found) for name, found in versions.items()},
        models=distinct(lambda run: run.result["model"]),
        tasks=distinct(lambda run: run.result["task"]),
        dtypes=distinct(lambda run: run.result["dtype"]),
        failed=runs.failed,
        failed_trials=runs.failed_trials,
        excluded=runs.excluded,
        unfinished=runs.unfinished,
    )


def _cost(
    arm: str,
    setting: str,
    own: Sequence[ReportedRun],
    tokens: Mapping[tuple[str, str], float],
) -> Cost:
    training = [run.result["training"] for run in own]
    wall = [read_cost(run.folder / COST) for run in own if (run.folder / COST).exists()]
    seconds = {
        name: fsum(c[name] / c["runs_in_cohort"] for c in wall) / len(wall)
        for name in ("training_s", "evaluation_s")
        if wall
    }
    peaks = {name: [c[name] for c in wall if c.get(name) is not None] for name in PEAKS}
    return Cost(
        arm=arm,
        setting=setting,
        runs=len(own),
        num_steps=_mean(training, "num_steps"),
        num_lora_updates=_mean(training, "num_lora_updates"),
        num_trained_parameters=_mean(training, "num_trained_parameters"),
        tokens=tokens.get((arm, setting)),
        training_s=seconds.get("training_s"),
        evaluation_s=seconds.get("evaluation_s"),
        peak_host_memory_gib=max(peaks[PEAKS[0]], default=None),
        peak_device_memory_gib=max(peaks[PEAKS[1]], default=None),
    )


def _by_place(runs: RunSet) -> dict[tuple[str, str], list[ReportedRun]]:
    found: dict[tuple[str, str], list[ReportedRun]] = {}
    for run in runs.runs:
        found.setdefault((run.arm, run.setting), []).append(run)
    return found


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return fsum(row[name] for row in rows) / len(rows)
