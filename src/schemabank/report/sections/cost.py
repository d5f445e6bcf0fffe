"""What runs cost: steps, tokens, seconds and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from schemabank.common.tables import PlainTable
from schemabank.report.plain import EPOCHS
from schemabank.report.reading import ReportedRun, RunSet
from schemabank.report.sections.cells import number, place
from schemabank.report.sections.chart import table_of
from schemabank.report.sections.curves import Curve
from schemabank.runs.folder import COST
from schemabank.runs.stored import read_cost

PEAKS = ("peak_host_memory_gib", "peak_device_memory_gib")


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


def find(runs: RunSet, curves: Sequence[Curve]) -> list[Cost]:
    """Return what every arm cost at every setting."""
    tokens = {(curve.arm, curve.setting): curve.mean_tokens for curve in curves}
    return [_cost(arm, setting, own, tokens) for (arm, setting), own in runs.at().items()]


def table(found: Sequence[Cost]) -> PlainTable | None:
    """Return what a run cost."""
    rows = [
        [
            own.arm,
            place(own.setting),
            number(own.runs, 0),
            number(own.num_steps, 0),
            number(own.num_lora_updates, 0),
            number(own.num_trained_parameters, 0),
            number(own.tokens, 0),
            number(own.training_s, 1),
            number(own.evaluation_s, 1),
            number(own.peak_host_memory_gib),
            number(own.peak_device_memory_gib),
        ]
        for own in found
    ]
    head = ["arm", "setting", "runs", "steps", "LoRA updates", "trained parameters", "tokens"]
    head += ["training, s", "evaluation, s", "host peak, GiB", "device peak, GiB"]
    return table_of("means a run; seconds are those of a cohort, divided by its runs", head, rows)


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


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return fsum(row[name] for row in rows) / len(rows)
