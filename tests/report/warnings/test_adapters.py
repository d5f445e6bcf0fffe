"""Adapters that are not what was trained."""

from pathlib import Path

from schemabank.files import read_json
from schemabank.peftcheck import FIELD, PeftCheck
from schemabank.rundir import RESULT
from schemabank.writing import write_json
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
    assert found["numbers"]["runs"] == {
        n: c.row() for n, c in zip(names[1:3], checks[1:], strict=True)
    }
    assert "2 runs are not what was trained" in found["sentence"]
    assert "the largest relative difference is 2.0e-04, and rounding explains" in found["sentence"]
    assert "could not be compared with its run in stock PEFT: no file" in found["sentence"]
