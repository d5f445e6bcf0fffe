"""The primary contrast by part of the split."""

from pathlib import Path

import pytest

from schemabank import stats
from synthetic import ITEMS, examined, in_parts


def test_parts_of_the_split_are_a_family(runs: Path) -> None:
    names = [f"part {n}" for n in range(5)]
    in_parts(runs, *names)
    found, _ = examined(runs, group="part 2")
    parts = found["groups"]
    assert [row["group"] for row in parts] == names
    adjusted = stats.holm([row["p"] for row in parts])
    assert [row["p_holm"] for row in parts] == pytest.approx(adjusted)
    assert all(row["p_holm"] <= 0.05 for row in parts if row["outcome"] in {"better", "worse"})
    own = parts[2]
    assert own["p"] == pytest.approx(found["primary"]["verdict"]["p"])
    assert own["difference"] == pytest.approx(found["primary"]["verdict"]["difference"])
    assert own["num_items"] == ITEMS / 5 == found["items"]["num_items"]
