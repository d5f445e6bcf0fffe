"""A report on a suite that was really trained, tuned and all."""

import json
from pathlib import Path

import pytest

from reports import report
from schemabank.common.files import read_json
from schemabank.report.command import HTML, JSON, Question
from schemabank.runs.folder import RESULT
from schemabank.runs.itemscores import load_item_scores
from schemabank.suites.execution import run_suite
from schemabank.suites.suite import load_suite
from tinyruns import Finished, Notes
from tinysuites import tiny

ARMS = {
    "zero-shot": {"arm": "base"},
    "lora": {},
    "schemabank, on": {"arm": "schemabank", "eval": {"routing": "on"}},
}


@pytest.mark.usefixtures("gsm8k")
def test_a_tuned_suite_is_reported(finished: Finished, tmp_path: Path) -> None:
    path = tiny(
        finished,
        tmp_path / "suite.yaml",
        arms=ARMS,
        grid={"train.num_train_epochs": [1]},
        tune={"factors": [0.5, 1.0], "seeds": [8], "extend": 0},
        contrast={"treatment": "schemabank, on", "control": "lora"},
    )
    out = tmp_path / "runs"
    run_suite(load_suite(path), out, Notes())
    found = report(out, Question(), tmp_path / "report")
    assert json.loads((tmp_path / "report" / JSON).read_text()) == found
    assert len((tmp_path / "report" / HTML).read_text()) > 1000
    assert (found["treatment"], found["control"]) == ("schemabank, on", "lora")
    assert found["references"][0]["arm"] == "zero-shot"
    assert found["references"][1]["arm"].startswith("best constant answer (")
    tried = [(row["arm"], len(row["scores"])) for row in found["rates"]]
    assert tried == [("lora", 1)] * 2 + [("schemabank, on", 1)] * 2
    assert sum(row["chosen"] for row in found["rates"]) == 2
    assert {"few-seeds", "unequal-updates", "rate-at-edge"} <= {w["id"] for w in found["warnings"]}
    assert {row["arm"] for row in found["curves"]} == {"lora", "schemabank, on"}
    stages = {row["arm"]: [s["name"] for s in row["stages"]] for row in found["curves"]}
    assert stages["schemabank, on"] == ["router", "schemas", "joint"]
    assert not found["provenance"]["excluded"]
    for row in found["provenance"]["runs"]:
        result = read_json(out / row["run_id"] / RESULT)
        scores = load_item_scores(out / row["run_id"], "correct").scores
        assert float(scores.mean()) == pytest.approx(result["groups"]["all"]["correct"])  # type: ignore[index, call-overload]
