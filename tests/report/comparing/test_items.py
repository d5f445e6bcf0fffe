"""Runs are compared over seeds and items, from the scores of single items."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from reports import page
from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.runs.folder import RESULT, SUITE
from schemabank.runs.itemscores import SCORES, load_item_scores, save_item_scores
from synthetic import (
    ITEMS,
    SEEDS,
    change,
    change_group,
    examined,
    ids,
    in_clusters,
    rows,
    scores,
)

Row = dict[str, Any]


def test_the_figures_are_those_of_the_predictions(runs: Path) -> None:
    found, _ = examined(runs)
    first, second = ([scores(runs, arm, e) for e in (1, 2)] for arm in ("arm 0", "arm 1"))
    a, b = np.mean(first, axis=0), np.mean(second, axis=0)
    pooled = found["pooled"]["paired"]["difference"]
    assert pooled["mean"] == pytest.approx(np.mean(a - b))
    assert pooled["p"] == pytest.approx(float(scipy_stats.ttest_rel(a, b).pvalue))
    at = {(row["arm"], row["epochs"]): row["scores"] for row in found["arms"]}
    assert list(at["arm 1", "2"].values()) == pytest.approx(second[1])
    assert (found["treatment"], found["control"], found["setting"]) == (
        "arm 0",
        "arm 1",
        "train.num_train_epochs",
    )


def test_items_are_compared_over_seeds_and_items_at_once(runs: Path) -> None:
    found = examined(runs)[0]["items"]
    matrices = []
    for arm in ("arm 0", "arm 1"):
        by_setting = [
            [
                load_item_scores(runs / row["run_id"], "correct").scores
                for row in sorted(rows(runs, arm, epochs), key=lambda row: row["seed"])
            ]
            for epochs in (1, 2)
        ]
        matrices.append(np.mean(np.array(by_setting, np.float64), axis=0))
    expected = stats.crossed_difference(*matrices)
    assert found["crossed"]["mean"] == pytest.approx(expected.mean)
    assert found["crossed"]["interval"] == pytest.approx(expected.interval)
    primary = examined(runs)[0]["primary"]
    judged = stats.verdict(expected)
    assert primary["test"] == "crossed"
    assert primary["verdict"]["outcome"] == judged.outcome
    assert primary["verdict"]["p"] == pytest.approx(judged.p)
    assert primary["verdict"]["interval"] == pytest.approx(judged.interval)
    over_seeds = stats.verdict(stats.paired_difference(*(m.mean(axis=1) for m in matrices)))
    assert primary["over_seeds"]["p"] == pytest.approx(over_seeds.p)
    assert (found["num_items"], found["num_seeds"], len(found["mcnemar"])) == (ITEMS, SEEDS, 8)
    one = found["mcnemar"][0]
    pair = [
        load_item_scores(runs / row["run_id"], "correct").scores
        for arm in ("arm 0", "arm 1")
        for row in rows(runs, arm, 1)
        if row["seed"] == one["seed"]
    ]
    assert one["only_treatment"] == int(((pair[0] == 1) & (pair[1] == 0)).sum())


def test_a_suite_of_other_seeds_is_compared_over_seeds_alone(runs: Path) -> None:
    listed: Any = read_json(runs / SUITE)["runs"]
    for row in listed:
        row["seed"] += 100 * (row["arm"] == "arm 1")
    change(runs / SUITE, runs=listed)
    found, _ = examined(runs)
    assert (found["primary"]["test"], found["items"]) == ("welch", None)
    assert found["primary"]["over_seeds"] is None
    assert "not paired." in page(found).split("**")[1]


def test_scores_of_a_run_without_the_file_come_from_its_predictions(runs: Path) -> None:
    whole, _ = examined(runs)
    for path in runs.glob(f"*/{SCORES}"):
        path.unlink()
    assert examined(runs)[0] == whole


def test_runs_with_other_items_are_no_pair(runs: Path) -> None:
    row = rows(runs, "arm 1", 2)[0]
    path = runs / row["run_id"] / "predictions.jsonl"
    path.write_text(path.read_text().replace('"test-3"', '"test-x"'))
    (runs / row["run_id"] / SCORES).unlink()
    with pytest.raises(InputError, match="scored on other items"):
        examined(runs)


@pytest.mark.parametrize("arm", ["arm 0", "arm 1"])
def test_an_older_run_without_clusters_has_the_same_items_and_is_no_pair(
    runs: Path, arm: str
) -> None:
    """The arm that comes first is read first."""
    for result in runs.glob(f"*/{RESULT}"):
        change(result, task="conditional")
    assert "clusters-not-recorded" in ids(runs)
    in_clusters(runs, *(f"word {number}" for number in range(20)))
    assert "clusters-not-recorded" not in ids(runs)
    old = rows(runs, arm)[-1]["run_id"]
    _change_predictions(runs / old, lambda row: row | {"cluster": ""})
    message = rf"on the same items, but {old} is of an older version, .* run them again, or report"
    with pytest.raises(InputError, match=message):
        examined(runs)
    _change_predictions(runs / old, lambda row: row | {"id": f"new {row['id']}"})
    with pytest.raises(InputError, match="scored on other items"):
        examined(runs)


def test_runs_whose_items_are_in_other_clusters_are_no_pair(runs: Path) -> None:
    in_clusters(runs, *(f"word {number}" for number in range(20)))
    other = runs / rows(runs, "arm 1")[0]["run_id"]
    changed = _change_predictions(other, lambda row: row | {"cluster": row["cluster"][:-1]})
    with pytest.raises(InputError, match=r"the same items, but these are drawn together in other"):
        examined(runs)
    save_item_scores(other, changed, "correct")
    (other / "predictions.jsonl").unlink()
    with pytest.raises(InputError, match=r"other items, or on the same in other clusters, allowed"):
        examined(runs)


def test_a_result_that_its_items_do_not_give_is_refused(runs: Path) -> None:
    change_group(runs / rows(runs, "arm 0")[0]["run_id"], correct=0.987)
    with pytest.raises(InputError, match=r"0\.987 in its result, but"):
        examined(runs)


def _change_predictions(folder: Path, how: Callable[[Row], Row]) -> list[Row]:
    """Change every row that a run wrote; its scores are read from there."""
    path = folder / "predictions.jsonl"
    found = [how(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / SCORES).unlink(missing_ok=True)
    return found
