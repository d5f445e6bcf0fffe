"""Unlike prompts, versions and tasks of other tools' evaluations."""

from collections.abc import Sequence

import pytest

from schemabank.report.comparing.comparison import compare
from schemabank.report.comparing.itemruns import ItemRuns
from schemabank.report.reading.itemresults import ScoredItem, TaskRun, as_score_table, item_results
from schemabank.report.warnings.evaluations import find_evaluation_warnings

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
