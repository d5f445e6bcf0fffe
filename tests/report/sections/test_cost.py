"""What runs cost."""

from pathlib import Path

import pytest

from schemabank.report.sections import cost
from schemabank.report.sections.cost import Cost
from schemabank.runs.folder import COST
from synthetic import change, examined, rows

COMPILING = "of both compiling, s"
FOUND = Cost("lora", "", 2, 10, 10, 64, None, 20.0, 4.0, None, None)


def test_seconds_of_a_cohort_are_shared_by_its_runs(runs: Path) -> None:
    """Of the time to compile, which earlier versions did not measure, by the runs that say it."""
    for row, compiling_s in zip(rows(runs, "arm 0", 1), (80.0, 40.0), strict=False):
        change(runs / row["run_id"] / COST, compiling_s=compiling_s)
    found = {(row["arm"], row["epochs"]): row for row in examined(runs)[0]["cost"]}
    told, older = found["arm 0", "1"], found["arm 1", "1"]
    assert (told["training_s"], told["evaluation_s"], told["compiling_s"]) == (10, 1, 1.5)
    assert (older["training_s"], older["evaluation_s"], older["compiling_s"]) == (10, 1, None)


@pytest.mark.parametrize("compiling_s", [None, 0.0, 2.5])
def test_compiling_is_shown_where_there_was_any(compiling_s: float | None) -> None:
    other = Cost("schemabank", "", 2, 10, 10, 64, None, 20.0, 4.0, None, None, 0, compiling_s)
    made = cost.table([FOUND, other])
    assert made is not None
    _, head, cells = made
    assert (COMPILING in head) == bool(compiling_s)
    if compiling_s:
        assert [row[head.index(COMPILING)] for row in cells] == ["", "2.5"]
