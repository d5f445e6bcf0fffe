"""Unlike prompts, versions and tasks of other tools' evaluations, and clusters of items."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.files import read_json
from schemabank.report.comparing.comparison import compare
from schemabank.report.comparing.itemruns import ItemRuns
from schemabank.report.reading.itemresults import ScoredItem, TaskRun, as_score_table, item_results
from schemabank.report.warnings.evaluations import find_evaluation_warnings
from schemabank.runs.folder import RESULT, SUITE
from synthetic import change, examined, finding, ids, in_clusters

ITEMS = {str(n): ScoredItem(float(n % 2)) for n in range(10)}


def run(arm: str, task: str = "a", **conditions: str) -> TaskRun:
    return TaskRun(arm, "1", task, "acc", f"{arm}-{task}", ITEMS, conditions)


def found(*runs: TaskRun) -> dict[str, str]:
    results = item_results("evals", "a tool", runs)
    table = as_score_table(results)
    comparison = compare(table, "new", "lora", None, ItemRuns(results).difference)
    return {own.id: own.sentence for own in find_evaluation_warnings(results, comparison)}


def test_alike_evaluations_give_no_warning() -> None:
    assert found(run("new", prompts="x"), run("lora", prompts="x")) == {}


def test_conditions_that_differ_or_are_missing() -> None:
    said = found(run("new", prompts="x", versions="1"), run("lora", prompts="y"))
    assert "a: prompts is x or y; a: versions is 1 or none" in said["other-evaluation"]


def test_a_third_arm_does_not_count() -> None:
    assert found(run("new", n="1"), run("lora", n="1"), run("third", n="2")) == {}


def clustered(arm: str, sizes: Sequence[int]) -> TaskRun:
    names = [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]
    items = {str(n): ScoredItem(float(n % 2), cluster=own) for n, own in enumerate(names)}
    return TaskRun(arm, "1", "a", "acc", arm, items)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([3] * 10, None),
        ([1] * 30, None),
        ([3] * 9, "a: 9, worth 9)"),
        ([300] + [10] * 29, "a: 30, worth 3.75)"),
    ],
)
def test_few_clusters(sizes: list[int], told: str | None) -> None:
    said = found(clustered("new", sizes), clustered("lora", sizes)).get("few-clusters")
    assert (said is None) == (told is None)
    assert told is None or told in str(said)


def test_tasks_that_are_not_shared() -> None:
    said = found(run("new"), run("lora"), run("new", "b"), run("third", "c"))
    assert "Tasks are left out" in said["excluded-tasks"]
    assert said["excluded-tasks"].endswith("share them: b; c.")


def test_few_clusters_of_the_runs_of_a_suite(runs: Path) -> None:
    in_clusters(runs, *(f"word {number}" for number in range(10)))
    assert "few-clusters" not in ids(runs)
    in_clusters(runs, *(f"word {number}" for number in range(6)))
    told = finding(runs, "few-clusters")
    assert told["numbers"] == {"clusters": {"all": {"num": 6, "worth": pytest.approx(6)}}}
    assert "(all: 6, worth 6)" in told["sentence"]


def test_few_clusters_give_no_verdict_on_the_runs_of_a_suite(runs: Path) -> None:
    """Clusters count in the declared contrast of a suite, too."""
    in_clusters(runs, *(f"word {number}" for number in range(4)))
    primary = examined(runs)[0]["primary"]
    assert "4 clusters of items are too few" in json.dumps(primary)


def test_runs_of_an_older_version_whose_items_should_have_clusters(runs: Path) -> None:
    for result in runs.glob(f"*/{RESULT}"):
        change(result, task="conditional")
    told = finding(runs, "clusters-not-recorded")
    assert "Items of conditional are drawn together" in told["sentence"]
    in_clusters(runs, *(f"word {number}" for number in range(20)))
    assert not {"clusters-not-recorded", "few-clusters"} & set(ids(runs))


def test_clusters_that_were_not_recorded_play_no_part_where_seeds_alone_count(runs: Path) -> None:
    for result in runs.glob(f"*/{RESULT}"):
        change(result, task="conditional")
    listed: Any = read_json(runs / SUITE)["runs"]
    for row in listed:
        row["seed"] += 100 * (row["arm"] == "arm 1")
    change(runs / SUITE, runs=listed)
    assert examined(runs)[0]["primary"]["test"] == "welch"
    assert "clusters-not-recorded" not in ids(runs)
