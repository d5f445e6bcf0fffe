"""Scores against the learning rates that were tried."""

from pathlib import Path

from reports import tables
from synthetic import examined, ids, tuned


def test_learning_rates_that_were_tried(runs: Path) -> None:
    assert "learning-rates-not-tuned" in ids(runs)
    tuned(runs, {"arm 0": 2, "arm 1": 2}, at_edge=False)
    found, _ = examined(runs)
    marks = [(r["arm"], r["learning_rate"], r["chosen"], r["best_score"]) for r in found["rates"]]
    assert marks == [
        ("arm 0", 1.0, False, True),
        ("arm 0", 2.0, True, False),
        ("arm 1", 1.0, False, True),
        ("arm 1", 2.0, True, False),
    ]
    _, _, rows = next(table for table in tables(found) if table[0] == "learning rates tried")
    assert [row[-1] for row in rows] == ["best score", "chosen"] * 2
    assert all(len(r["scores"]) == 2 and r["split"] == "validation" for r in found["rates"])
    said = {w["id"] for w in found["warnings"]}
    assert not said & {"learning-rates-not-tuned", "unequal-tuning", "rate-at-edge"}
