"""Adapters that are not what was trained."""

from pathlib import Path

from schemabank.adapters.peftcheck import FIELD, PeftCheck
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.runs.folder import RESULT
from synthetic import finding, ids, rows


def test_an_adapter_that_is_not_what_was_trained_is_the_first_finding(runs: Path) -> None:
    assert "adapter-not-as-trained" not in ids(runs)
    checks = [PeftCheck(1e-15, 1e-13), PeftCheck(2e-4, 1e-13), PeftCheck(None, None, "no file")]
    names = [row["run_id"] for row in rows(runs, "arm 0", 1)]
    for name, check in zip(names, checks, strict=False):
        result = read_json(runs / name / RESULT)
        write_json(runs / name / RESULT, {**result, FIELD: check.row()})
    assert ids(runs)[0] == "adapter-not-as-trained"
    found = finding(runs, "adapter-not-as-trained")
    assert found["numbers"]["runs"] == {names[1]: checks[1].row()}
    assert "adapters of 1 run are not what was trained" in found["sentence"]
    assert "the largest relative difference is 2.0e-04, and rounding explains" in found["sentence"]
    found = finding(runs, "adapter-not-compared")
    assert found["numbers"]["runs"] == {names[2]: checks[2].row()}
    assert "Nothing is known of the saved adapters of 1 run: " in found["sentence"]
    assert "could not be compared with its run in stock PEFT: no file" in found["sentence"]
