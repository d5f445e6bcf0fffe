"""What the arms wrote, side by side."""

from pathlib import Path
from typing import Any

from reports import report
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.report.command import Question
from schemabank.runs.folder import SUITE
from synthetic import ITEMS, examined, rows


def test_samples_show_what_flips(runs: Path) -> None:
    _, found = examined(runs)
    assert len(found) == ITEMS
    for sample in found:
        right = {(a["arm"], a["seed"]): a["score"] for a in sample["answers"]}
        pairs = [(right["arm 0", s], right["arm 1", s]) for _, s in right if ("arm 0", s) in right]
        gained, lost = (any(a > b for a, b in pairs), any(a < b for a, b in pairs))
        if gained or lost:
            expected = "mixed" if gained and lost else "gained" if gained else "lost"
        else:
            expected = {1: "both", 0: "neither"}.get(sum(a for a, _ in pairs) / len(pairs), "mixed")
        assert sample["flip"] == expected


def test_what_flipped_comes_first(runs: Path) -> None:
    _, found = examined(runs)
    flipped = [sample["flip"] in {"gained", "lost", "mixed"} for sample in found]
    assert flipped == sorted(flipped, reverse=True)
    assert 0 < sum(flipped) < ITEMS
    for part in (found[: sum(flipped)], found[sum(flipped) :]):
        numbers = [int(sample["id"].rpartition("-")[2]) for sample in part]
        assert numbers == sorted(numbers)


def test_completions_that_were_not_kept(runs: Path) -> None:
    for path in runs.glob("*/predictions.jsonl"):
        path.unlink()
    found, shown = examined(runs)
    assert (shown, found["samples_of"]["without_predictions"]) == ([], 8 * 3)


def test_samples_without_a_common_seed(runs: Path) -> None:
    manifest: Any = read_json(runs / SUITE)
    for row in manifest["runs"]:
        row["seed"] += 100 * (row["arm"] == "arm 1")
    write_json(runs / SUITE, manifest)
    found, shown = examined(runs)
    assert {sample["flip"] for sample in shown} == {"unpaired"}
    assert found["items"] is None


def test_half_a_surrogate_in_a_completion(runs: Path, tmp_path: Path) -> None:
    path = runs / rows(runs, "arm 0", 2)[0]["run_id"] / "predictions.jsonl"
    text = path.read_text()
    assert "add 1 to 0" in text
    path.write_text(text.replace("add 1 to 0", "\\ud83d", 1))
    report(runs, Question(), tmp_path / "out")
