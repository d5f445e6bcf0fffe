"""Runs of other tools: what may stand side by side, and the table that they make."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest

from schemabank.common.errors import InputError
from schemabank.report.reading.itemresults import (
    ONLY_RUN,
    ItemResults,
    ScoredItem,
    TaskRun,
    as_score_table,
    item_results,
)

ITEMS = {"0": ScoredItem(1.0, "a"), "1": ScoredItem(0.0, "b"), "2": ScoredItem(1.0, "c")}


def run(
    arm: str = "lora", seed: str | None = "1", items: Mapping[str, ScoredItem] = ITEMS, **other: str
) -> TaskRun:
    own = {"task": "gsm8k", "metric": "acc", **other}
    return TaskRun(arm, seed, own["task"], own["metric"], f"{arm}-{seed}.jsonl", items)


def results(*runs: TaskRun) -> ItemResults:
    return item_results("evals", "a tool", runs)


def test_scores_stand_in_the_first_runs_order() -> None:
    turned = dict(reversed(ITEMS.items())) | {"0": ScoredItem(0.0, "a")}
    found = results(run(), run("new", "1", turned))
    assert found.scores("new", "gsm8k", ["1"]).tolist() == [[0.0, 0.0, 1.0]]
    assert found.tasks == ["gsm8k"]
    assert found.clusters("gsm8k") is None


def test_an_arm_without_seeds_fits_every_seed() -> None:
    found = results(run(), run(seed="2"), run("base", None))
    assert np.shape(found.scores("base", "gsm8k", ["1", "2"])) == (2, 3)
    table = as_score_table(found)
    assert [row.arm for row in table.references] == ["base"]
    assert table.trained == ["lora"]


def test_single_runs_without_seeds_are_arms() -> None:
    found = results(run(seed=None), run("new", None))
    assert {own.seed for own in found.runs} == {ONLY_RUN}
    assert as_score_table(found).arms == ["lora", "new"]


def test_the_table_is_exact_where_scores_are_right_or_wrong() -> None:
    shares = {"0": ScoredItem(0.25), "1": ScoredItem(0.5)}
    first, second = as_score_table(results(run(), run(items=shares, task="f"))).rows
    assert (first.exact, first.num_items, first.setting) == (Fraction(2, 3), 3, "gsm8k")
    assert (second.exact, second.num_items) == (Fraction(3, 8), None)


def test_items_in_clusters_and_alone() -> None:
    mixed = {
        "0": ScoredItem(1.0, cluster="x"),
        "x": ScoredItem(0.0),
        "2": ScoredItem(1.0, cluster="x"),
    }
    found = results(run(items=mixed)).clusters("gsm8k")
    assert found is not None
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (run(), "are both of arm 'lora', seed 1 and task 'gsm8k': allowed is one run a place"),
        (run("new", metric="f1"), "have the metrics 'acc' and 'f1'"),
        (run("new", items={}), "new-1.jsonl has no item of task"),
        (run("new", items=ITEMS | {"9": ScoredItem(1)}), "other items .*1 of them .* such as '9'"),
        (run("new", items={"0": ScoredItem(1)}), "have other items"),
        (run("new", items=ITEMS | {"1": ScoredItem(0, "z")}), "other contents under the id '1'"),
        (
            run("new", items=ITEMS | {"1": ScoredItem(0, "b", "k")}),
            "have the item '1' in the clusters None and 'k'",
        ),
    ],
)
def test_what_cannot_be_compared(other: TaskRun, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        results(run(), other)
    assert other.source in str(error.value)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[2J", "\ud800", "a\u202eb"])
def test_names_that_cannot_be_shown(name: str) -> None:
    for other in (run(name), run(task=name), run(metric=name)):
        with pytest.raises(InputError, match="allowed are names that can be printed"):
            results(other)


def test_the_digest_is_that_of_scores_and_places() -> None:
    first = results(run(), run("new")).digest
    assert first == results(run(), run("new")).digest
    assert first != results(run(), run("new", items=ITEMS | {"0": ScoredItem(0.0, "a")})).digest
    assert first != results(run(), run("other")).digest


def test_an_arm_has_seeds_for_all_runs_or_for_none() -> None:
    with pytest.raises(InputError, match=r"lora-None\.jsonl names no seed, but lora-1\.jsonl of"):
        results(run(), run(seed=None), run("new"))
