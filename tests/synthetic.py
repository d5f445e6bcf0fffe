"""Synthetic runs, ways to spoil them, and what a report says of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reports
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.report.command import Question
from schemabank.runs.folder import RESULT, SUITE
from schemabank.runs.itemscores import SCORES
from tools import BENCHMARKS, load_tool

GENERATOR = load_tool(BENCHMARKS / "report_scale.py")
SEEDS, ITEMS = 4, 60
Json = dict[str, Any]


def examined(folder: Path, **asked: str | int | None) -> tuple[Json, list[Json]]:
    return reports.examined(folder, Question(**asked))  # type: ignore[arg-type]


def ids(folder: Path, **asked: str | int | None) -> list[str]:
    return [found["id"] for found in examined(folder, **asked)[0]["warnings"]]


def finding(folder: Path, rule: str, **asked: str | int | None) -> Json:
    (found,) = [w for w in examined(folder, **asked)[0]["warnings"] if w["id"] == rule]
    return dict(found)


def rows(folder: Path, arm: str, epochs: int | None = None) -> list[Json]:
    return [
        row
        for row in read_json(folder / SUITE)["runs"]  # type: ignore[attr-defined]
        if row["arm"] == arm and epochs in (None, row["settings"]["train.num_train_epochs"])
    ]


def change(path: Path, **values: object) -> None:
    write_json(path, {**read_json(path), **values})


def change_group(folder: Path, **values: object) -> None:
    result = read_json(folder / RESULT)
    groups: Any = result["groups"]
    groups["all"] |= values
    write_json(folder / RESULT, result)


def rescore(folder: Path, num_correct: int) -> None:
    """Let a run answer so many items right, in all of its files."""
    path = folder / "predictions.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(found):
        row["scores"]["correct"] = float(number < num_correct)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / SCORES).unlink(missing_ok=True)
    change_group(folder, correct=num_correct / ITEMS)


def fail(folder: Path, reason: str = "out of memory", times: int = 1) -> None:
    """Let a run have failed instead."""
    for number in range(1, times + 1):
        aside = folder.with_name(f"{folder.name}.unfinished-{number}")
        aside.mkdir()
        write_json(aside / "failure.json", {"failure": f"{reason} {number}"})
    shutil.rmtree(folder)


def scores(folder: Path, arm: str, epochs: int) -> list[float]:
    """By seed, counted from the predictions."""
    found = {}
    for row in rows(folder, arm, epochs):
        text = (folder / row["run_id"] / "predictions.jsonl").read_text()
        right = [json.loads(line)["scores"]["correct"] for line in text.splitlines()]
        found[row["seed"]] = sum(right) / len(right)
    return [found[seed] for seed in sorted(found)]


def in_parts(runs: Path, *names: str) -> None:
    """Deal the items of all runs to parts of the split."""
    for result in runs.glob(f"*/{RESULT}"):
        path = result.with_name("predictions.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(found):
            row["group"] = names[number % len(names)]
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        result.with_name(SCORES).unlink(missing_ok=True)
        old: Any = read_json(result)["groups"]
        groups = {}
        for name in names:
            own = [row["scores"]["correct"] for row in found if row["group"] == name]
            mean = sum(own) / len(own)
            groups[name] = {**old["all"], "num_items": len(own), "correct": mean}
        change(result, groups=groups)


def in_clusters(runs: Path, *names: str) -> None:
    """Deal the items of all runs to clusters; the empty name stands for none."""
    for result in runs.glob(f"*/{RESULT}"):
        path = result.with_name("predictions.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(found):
            row["cluster"] = names[number % len(names)]
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        result.with_name(SCORES).unlink(missing_ok=True)


def tuned(runs: Path, seeds: dict[str, int], *, at_edge: bool) -> None:
    """Pretend that arms were tuned with the runs of arms 8 and 9."""
    spare = [row["run_id"] for arm in ("arm 8", "arm 9") for row in rows(runs, arm)]
    tries = [
        {"run_id": spare.pop(), "arm": arm, "seed": seed, "factor": factor, "learning_rate": factor}
        | {"settings": {"train.num_train_epochs": 1}}
        for arm, num in seeds.items()
        for factor in (1.0, 2.0)
        for seed in range(num)
    ]
    chosen = [
        {"arm": arm, "settings": {"train.num_train_epochs": 1}, "factor": 2.0}
        | {"learning_rate": 2.0, "at_edge": at_edge, "best_score_factor": 1.0}
        for arm in seeds
    ]
    kept = [row for row in read_json(runs / SUITE)["runs"] if row["arm"] < "arm 8"]  # type: ignore[attr-defined]
    tuning = {"split": "validation", "seeds": [], "factors": [], "runs": tries, "chosen": chosen}
    change(runs / SUITE, runs=kept, tuning=tuning)


def keep_rows(runs: Path, keep: Callable[[str, int, int], bool]) -> None:
    """Leave some runs in the suite, by arm, epochs and seed."""
    kept = [
        row
        for row in read_json(runs / SUITE)["runs"]  # type: ignore[attr-defined]
        if keep(row["arm"], row["settings"]["train.num_train_epochs"], row["seed"])
    ]
    change(runs / SUITE, runs=kept)
