"""Other tools' runs item by item: which test, over which seeds, tasks and clusters."""

import numpy as np
import pytest

from schemabank import stats
from schemabank.report.comparing.itemruns import ItemRuns
from schemabank.report.reading.itemresults import ItemResults, ScoredItem, TaskRun, item_results

NUM = 40
Scores = np.ndarray


def made(arms: dict[str, dict[str | None, dict[str, Scores]]], *, clusters: bool) -> ItemResults:
    def items(scores: Scores) -> dict[str, ScoredItem]:
        return {
            str(n): ScoredItem(float(s), cluster=str(n // 4) if clusters else None)
            for n, s in enumerate(scores)
        }

    return item_results(
        "evals",
        "a tool",
        [
            TaskRun(arm, seed, task, "acc", f"{arm}-{seed}", items(scores))
            for arm, seeds in arms.items()
            for seed, tasks in seeds.items()
            for task, scores in tasks.items()
        ],
    )


def drawn(rng: np.random.Generator, seeds: list[str | None]) -> dict[str | None, dict[str, Scores]]:
    return {
        seed: {task: (rng.random(NUM) < 0.5).astype(float) for task in ("a", "b")} for seed in seeds
    }


@pytest.mark.parametrize("clusters", [False, True])
def test_one_task_over_seeds_is_the_crossed_difference(clusters: bool) -> None:
    rng = np.random.default_rng(0)
    arms = {arm: drawn(rng, ["1", "2", "3"]) for arm in ("new", "lora")}
    found = ItemRuns(made(arms, clusters=clusters)).difference("new", "lora", ["a"])
    a, b = (np.stack([arms[arm][s]["a"] for s in ("1", "2", "3")]) for arm in ("new", "lora"))
    own = [n // 4 for n in range(NUM)] if clusters else None
    assert found == stats.crossed_difference(a, b, clusters=own)
    assert isinstance(found, stats.CrossedDifference)
    assert found.num_clusters == (NUM // 4 if clusters else NUM)


def test_several_tasks_are_strata() -> None:
    rng = np.random.default_rng(1)
    arms = {arm: drawn(rng, ["1", "2"]) for arm in ("new", "lora")}
    runs = ItemRuns(made(arms, clusters=False))
    found = runs.difference("new", "lora", ["a", "b"])
    assert isinstance(found, stats.StratifiedDifference)
    assert found.num_strata == 2
    items = runs.comparison(("new", "lora"), ["a", "b"])
    assert items is not None
    assert (items.setting, items.num_items, items.num_seeds) == (None, 2 * NUM, 2)
    assert [(own.seed, own.setting) for own in items.mcnemar] == [
        ("1", "a"), ("2", "a"), ("1", "b"), ("2", "b"),
    ]  # fmt: skip


def test_single_runs_are_compared_over_items() -> None:
    rng = np.random.default_rng(2)
    arms = {arm: drawn(rng, [None]) for arm in ("new", "lora")}
    found = ItemRuns(made(arms, clusters=True)).difference("new", "lora", ["a", "b"])
    assert isinstance(found, stats.OverItems)
    assert (found.num_strata, found.num_clusters) == (2, 2 * NUM // 4)


def test_an_untouched_model_answers_for_every_seed() -> None:
    rng = np.random.default_rng(3)
    arms = {"new": drawn(rng, ["1", "2"]), "base": drawn(rng, [None])}
    found = ItemRuns(made(arms, clusters=False)).difference("new", "base", ["a"])
    a, b = np.stack([arms["new"][s]["a"] for s in ("1", "2")]), arms["base"][None]["a"]
    assert found == stats.crossed_difference(a, np.stack([b, b]))


def test_one_shared_seed_of_several_is_no_comparison_of_items() -> None:
    rng = np.random.default_rng(4)
    arms = {"new": drawn(rng, ["1", "2"]), "lora": drawn(rng, ["2", "3"])}
    runs = ItemRuns(made(arms, clusters=False))
    assert runs.shared_seeds("new", "lora", ["a"]) == ["2"]
    assert runs.difference("new", "lora", ["a"]) is None
    assert runs.comparison(("new", "lora"), ["a"]) is None
