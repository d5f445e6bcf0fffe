"""The benchmark of two GPUs: what it computes from the costs of runs, and what its page shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import BENCHMARKS, load_tool

workers: Any = load_tool(BENCHMARKS / "workers.py")
ROOT = BENCHMARKS.parent
RECORD = ROOT / "results" / "workers.json"
ROW = {"workers": 1, "runs": 8, "slots": 2, "wall_s": 100.0, "beside_s": 20.0}


def test_each_unit_counts_once_and_those_that_took_as_long_are_told_apart(tmp_path: Path) -> None:
    units = [(30.0, 10.0), (20.0, 5.0), (20.0, 5.0)]
    for number, (training_s, evaluation_s) in enumerate([*units, *units]):
        folder = tmp_path / f"lora-seed{number}"
        folder.mkdir()
        cost = {"training_s": training_s, "evaluation_s": evaluation_s}
        (folder / "cost.json").write_text(json.dumps({**cost, "runs_in_cohort": 2, "slots": 2}))
    row = workers.row(tmp_path, 2, 60.0)
    assert row["unit_s"] == [40.0, 25.0, 25.0]
    assert (row["runs"], row["units"], row["work_s"]) == (6, 3, 90.0)
    assert (row["runs_per_hour"], row["beside_s"]) == (360.0, 15.0)


def test_the_longest_unit_of_each_worker_is_its_first() -> None:
    one = {**ROW, "runs_per_hour": 288.0, "unit_s": [40.0, 20.0, 20.0, 20.0]}
    two = {**one, "workers": 2, "runs_per_hour": 480.0, "unit_s": [41.0, 40.0, 21.0, 20.0]}
    assert workers.steady(one) == 360
    assert workers.steady(two) == pytest.approx(2 * 7200 / 20.5)
    *_, last = workers.table([one, two])
    assert last.endswith("| 480 | 1.67 | 702 | 1.95 |")


def test_without_a_second_unit_nothing_is_said_of_workers_that_have_compiled() -> None:
    row = {**ROW, "runs_per_hour": 288.0, "unit_s": [80.0]}
    assert workers.steady(row) is None
    assert "once compiled" not in workers.table([row])[0]


@pytest.mark.parametrize("harm", ["other", "missing"])
def test_files_that_differ_or_are_missing_are_named(tmp_path: Path, harm: str) -> None:
    name = "lora-seed1/predictions.jsonl.gz"
    for folder, content in (("one", b"1"), ("two", b"2" if harm == "other" else None)):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True)
        if content is not None:
            path.write_bytes(content)
    one, two = tmp_path / "one", tmp_path / "two"
    assert workers.differences(one, two) == [name]
    assert workers.differences(one, one) == []


def test_the_page_shows_the_record() -> None:
    rows = json.loads(RECORD.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    shown = "\n".join(workers.table(rows))
    assert page.partition("<!-- workers.py: results/workers.json -->\n")[2].startswith(shown)
    assert [row["workers"] for row in rows] == [1, 2]
    assert all(row["different_files"] == [] for row in rows)
