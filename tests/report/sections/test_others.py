"""The treatment against every other arm."""

from pathlib import Path

import pytest

from schemabank import stats
from synthetic import examined


def test_other_arms_are_a_family_of_their_own(runs: Path) -> None:
    found, _ = examined(runs)
    assert [row["arm"] for row in found["others"]] == [f"arm {n}" for n in range(2, 10)]
    assert stats.holm([row["p"] for row in found["others"]]) == pytest.approx(
        [row["p_holm"] for row in found["others"]]
    )
