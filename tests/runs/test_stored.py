"""The files of runs as they are read: those of older versions are, damaged ones are named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.report.command import Question, report
from schemabank.runs.experiment import run_experiment
from schemabank.runs.folder import COST, RESULT
from schemabank.runs.inputs import OLDER
from schemabank.runs.stored import read_cost, read_result, read_routing
from schemabank.runs.tables import results_tables, skipped_lines
from tinyruns import Finished, Notes

ANALYSES = Path(__file__).parents[2] / "results" / "routing"
# What a result has come to say, the latest first: an older one lacks some first keys of these.
ADDED = ("peft_check", "prompt_form", "prompt_forms", "inputs", "num_updates")


def as_of(result: dict[str, Any], number: int) -> dict[str, Any]:
    """A result as it was written before the latest so many keys were added."""
    lost = ADDED[:number]
    kept = {key: value for key, value in result.items() if key not in lost}
    if kept["training"] is not None:
        trained = kept["training"].items()
        kept["training"] = {key: value for key, value in trained if key not in lost}
    return kept


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("number", range(1, len(ADDED) + 1))
def test_runs_of_every_older_version_are_used_again_and_reported(
    number: int, finished: Finished, tmp_path: Path
) -> None:
    out, notes = tmp_path / "runs", Notes()
    shutil.copytree(finished.out, out)
    for path in out.glob(f"*/{RESULT}"):
        older = as_of(json.loads(path.read_text()), number)
        assert not older.keys() & set(ADDED[:number])
        path.write_text(json.dumps(older))
        assert read_result(path) == older
    outcomes = run_experiment(load_experiment(finished.config), out, notes)
    assert [outcome.reused for outcome in outcomes] == [True] * 3
    assert any(OLDER in line for line in notes.lines) == ("inputs" in ADDED[:number])
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    assert results_tables(results)[0].row_count > len(results)
    assert skipped_lines(results) == []
    assert report(out, Question(treatment="schemabank", control="lora"))


def test_what_a_run_cost_is_read_as_it_was_written(finished: Finished, tmp_path: Path) -> None:
    whole = read_cost(finished.lora.folder / COST)
    assert (whole["launcher"], whole["workers"]) == ("local", 1)
    assert whole["compiling_s"] == 0, "on a CPU"
    added = {"launcher", "workers", "compiling_s"}
    older = {name: value for name, value in whole.items() if name not in added}
    (tmp_path / COST).write_text(json.dumps(older))
    assert read_cost(tmp_path / COST) == older


@pytest.mark.parametrize("name", ["rule-tags.json", "no-tags.json"])
def test_an_analysis_of_routing_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    whole = json.loads((ANALYSES / name).read_text())
    assert read_routing(ANALYSES / name) == whole
    older = {key: value for key, value in whole.items() if key != "inputs"}
    (tmp_path / name).write_text(json.dumps(older))
    assert read_routing(tmp_path / name) == older


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inputs": 3}, "inputs"),
        ({"inputs": {"model": 3}}, r"inputs\.model"),
        ({"layers": 3}, "layers"),
        ({"layers": []}, "layers"),
        ({"states": ["start", "end", "after"]}, "information .*a row for every state; .*'after'"),
        ({"by_value": [{"field": "rule"}]}, r"by_value\.0\.layer \(it is missing"),
    ],
)
def test_a_damaged_analysis_of_routing_is_named(
    change: dict[str, object], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "routing.json"
    path.write_text(json.dumps(json.loads((ANALYSES / "rule-tags.json").read_text()) | change))
    with pytest.raises(InputError, match=rf"routing\.json' lacks a usable {named}"):
        read_routing(path)
