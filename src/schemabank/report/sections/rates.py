"""Scores against learning rates: what was tried for every arm, and what was chosen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemabank import stats
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import RunSet, label
from schemabank.rundir import RESULT
from schemabank.runfiles import read_result


@dataclass(frozen=True)
class Tried:
    """An arm at one learning rate.

    Attributes:
        arm, setting: of the runs.
        learning_rate: peak of the stages that train LoRA.
        split: that they were scored on.
        scores: by seed; runs that failed are missing.
        mean: over seeds; ``None`` if all failed.
        interval: Student's over seeds.
        chosen: whether the arm's final runs have it.
        at_edge: whether it was chosen and no rate beyond it was tried.
        best_score: whether the best mean score alone would have chosen it.
        failed: runs that failed.
    """

    arm: str
    setting: str = field(metadata=EPOCHS)
    learning_rate: float
    split: str
    scores: dict[str, float]
    mean: float | None
    interval: stats.Interval | None
    chosen: bool
    at_edge: bool
    best_score: bool
    failed: int


def tried_rates(path: Path, runs: RunSet, group: str) -> list[Tried]:
    """Return what a suite's tuning tried; nothing for runs that were not tuned.

    Args:
        path: the suite's folder.
        runs: of the suite.
        group: of items; a run whose split lacks it has no score here.
    """
    if runs.tuning is None:
        return []
    choices = {(row["arm"], label(runs, row["settings"])): row for row in runs.tuning["chosen"]}
    places: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in runs.tuning["runs"]:
        key = row["arm"], label(runs, row["settings"]), row["factor"]
        places.setdefault(key, []).append(row)
    found = [
        _tried(key, own, dict(_scores(path, runs, group, own)), runs, choices.get(key[:2], {}))
        for key, own in places.items()
    ]
    order = {key[:2]: n for n, key in enumerate(places)}
    return sorted(found, key=lambda tried: (order[tried.arm, tried.setting], tried.learning_rate))


def _tried(
    key: tuple[str, str, float],
    rows: Sequence[Mapping[str, Any]],
    scores: dict[str, float],
    runs: RunSet,
    choice: Mapping[str, Any],
) -> Tried:
    arm, setting, factor = key
    chosen = choice.get("factor") == factor
    failed = {left.run for left in runs.failed_trials}
    summary = stats.summarise_arm(list(scores.values())) if scores else None
    return Tried(
        arm=arm,
        setting=setting,
        learning_rate=rows[0]["learning_rate"],
        split=str(runs.tuning and runs.tuning["split"]),
        scores=scores,
        mean=None if summary is None else summary.mean,
        interval=None if summary is None else summary.interval,
        chosen=chosen,
        at_edge=chosen and bool(choice["at_edge"]),
        best_score=choice.get("best_score_factor") == factor,
        failed=sum(row["run_id"] in failed for row in rows),
    )


def _scores(
    path: Path, runs: RunSet, group: str, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, float]]:
    for row in rows:
        result = path / row["run_id"] / RESULT
        if result.exists():
            groups: Any = read_result(result)["groups"]
            if runs.score in groups.get(group, {}):
                yield str(row["seed"]), groups[group][runs.score]
