"""What runs cost: steps, tokens, seconds and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from schemabank.common.tables import PlainTable
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import ReportedRun, RunSet
from schemabank.report.sections.cells import number, place
from schemabank.report.sections.chart import table_of
from schemabank.report.sections.curves import Curve
from schemabank.runs.fairness import TEACHER_STEPS


@dataclass(frozen=True)
class Cost:
    """Means a run; seconds are the cohort's wall clock over its runs, memory is the largest.

    Neither counts the teachers of a run, but for their steps.
    """

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
    num_teacher_steps: float = 0
    compiling_s: float | None = None


def find(runs: RunSet, curves: Sequence[Curve]) -> list[Cost]:
    """Return what every arm cost at every setting."""
    tokens = {(curve.arm, curve.setting): curve.mean_tokens for curve in curves}
    return [_cost(*place, own, tokens.get(place)) for place, own in runs.by_place().items()]


def table(found: Sequence[Cost]) -> PlainTable | None:
    """Return what a run cost."""
    taught = any(own.num_teacher_steps for own in found)
    compiled = any(own.compiling_s for own in found)  # none is on a CPU
    rows = [
        {
            "arm": own.arm,
            "setting": place(own.setting),
            "runs": number(own.runs, 0),
            "steps": number(own.num_steps, 0),
            **({"steps of teachers": number(own.num_teacher_steps, 0)} if taught else {}),
            "LoRA updates": number(own.num_lora_updates, 0),
            "trained parameters": number(own.num_trained_parameters, 0),
            "tokens": number(own.tokens, 0),
            "training, s": number(own.training_s, 1),
            "evaluation, s": number(own.evaluation_s, 1),
            **({"of both compiling, s": number(own.compiling_s, 1)} if compiled else {}),
            "host peak, GiB": number(own.peak_host_memory_gib),
            "device peak, GiB": number(own.peak_device_memory_gib),
        }
        for own in found
    ]
    return table_of("means a run; seconds are those of a cohort, divided by its runs", rows)


def _cost(arm: str, setting: str, runs: Sequence[ReportedRun], tokens: float | None) -> Cost:
    training = [run.result["training"] for run in runs]
    wall = [run.cost for run in runs if run.cost is not None]
    return Cost(
        arm=arm,
        setting=setting,
        runs=len(runs),
        num_steps=fmean(row["num_steps"] for row in training),
        num_teacher_steps=fmean(row.get(TEACHER_STEPS, 0) for row in training),
        num_lora_updates=fmean(row["num_lora_updates"] for row in training),
        num_trained_parameters=fmean(row["num_trained_parameters"] for row in training),
        tokens=tokens,
        training_s=_seconds_a_run(wall, "training_s"),
        evaluation_s=_seconds_a_run(wall, "evaluation_s"),
        compiling_s=_seconds_a_run(wall, "compiling_s"),
        peak_host_memory_gib=_largest(wall, "peak_host_memory_gib"),
        peak_device_memory_gib=_largest(wall, "peak_device_memory_gib"),
    )


def _seconds_a_run(wall: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of the runs that say it: costs of earlier versions lack some."""
    shares = [row[name] / row["runs_in_cohort"] for row in wall if row.get(name) is not None]
    return fmean(shares) if shares else None


def _largest(wall: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return max((row[name] for row in wall if row.get(name) is not None), default=None)
