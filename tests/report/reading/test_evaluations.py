"""Which tool wrote what lies at a place; and the committed files, which have the tools' shapes."""

from pathlib import Path

import pytest

from evaluations import inspect_log, write_inspect, write_lm_eval, write_peft
from schemabank.common.errors import InputError
from schemabank.report.reading.evaluations import (
    INSPECT,
    LM_EVAL,
    PEFT,
    holds_evaluations,
    read_evaluations,
    tool_of,
)
from schemabank.report.reading.itemresults import ItemResults
from schemabank.report.reading.places import Place

FIXTURES = Path(__file__).parents[2] / "fixtures"


def of_items(places: list[Place], cluster_by: str | None = None) -> ItemResults:
    found = read_evaluations(places, None, cluster_by)
    assert isinstance(found, ItemResults)
    return found


def test_the_committed_lm_eval_runs() -> None:
    found = of_items([Place(FIXTURES / "lm_eval")])
    assert found.tool == LM_EVAL
    places = {(run.arm, run.seed, run.task): run.mean for run in found.runs}
    assert places == {
        ("lora", "1", "gsm8k"): 0.25,
        ("lora", "1", "arc_easy"): 0.5,
        ("new", "1", "gsm8k"): 0.5,
        ("new", "1", "arc_easy"): 0.75,
    }
    assert {run.metric for run in found.runs} == {"exact_match,strict-match", "acc,none"}


def test_the_committed_logs_of_inspect() -> None:
    found = of_items([Place(FIXTURES / "inspect")], "topic")
    assert found.tool == INSPECT
    assert {run.arm: run.mean for run in found.runs} == {"hf/lora": 0.5, "hf/new": 0.875}
    assert found.clusters("arithmetic") == ["=t0", "=t0", "=t1", "=t1"]


def test_names_of_arms_and_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_lm_eval(tmp_path / name / "org__model", {"gsm8k": [1.0, 0.0]})
    named = [Place(tmp_path / "a", "lora", "7"), Place(tmp_path / "b", "new", "7")]
    found = of_items(named)
    assert [(run.arm, run.seed) for run in found.runs] == [("lora", "7"), ("new", "7")]
    assert found.name == "lora, new"
    whole = of_items([Place(tmp_path)])
    assert [run.arm for run in whole.runs] == ["a", "b"]
    assert whole.name == tmp_path.name


def test_a_run_in_the_folder_itself_has_its_models_name(tmp_path: Path) -> None:
    write_lm_eval(tmp_path, {"gsm8k": [1.0, 0.0]})
    (run,) = of_items([Place(tmp_path)]).runs
    assert run.arm == "org/model"


def test_places_without_results_and_with_those_of_two_tools(tmp_path: Path) -> None:
    assert not holds_evaluations(tmp_path)
    with pytest.raises(InputError, match="holds no results of lm-evaluation-harness"):
        read_evaluations([Place(tmp_path)], None, None)
    write_lm_eval(tmp_path / "a", {"gsm8k": [1.0]})
    assert holds_evaluations(tmp_path)
    write_inspect(tmp_path / "b" / "log.json", inspect_log(["C"]))
    with pytest.raises(InputError, match="are of lm-evaluation-harness and Inspect: report one"):
        read_evaluations([Place(tmp_path)], None, None)


def test_a_file_is_known_by_its_name_or_by_what_it_holds(tmp_path: Path) -> None:
    assert tool_of(write_inspect(tmp_path / "log.json", inspect_log(["C"]))) == INSPECT
    assert tool_of(write_lm_eval(tmp_path, {"gsm8k": [1.0]})) == LM_EVAL
    assert tool_of(write_peft(tmp_path / "p.json", "lora/x", 0.5)) == PEFT
    other = tmp_path / "adapter_config.json"
    for text in ('{"peft_type": "LORA"}', "[1, 2]"):
        other.write_text(text)
        assert tool_of(other) is None
    other.write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        tool_of(other)


def test_an_evaluation_that_was_repeated_is_refused(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path / "lora", {"gsm8k": [1.0]})
    for file in list(path.parent.iterdir()):
        later = file.with_name(file.name.replace("2026-03", "2026-04"))
        later.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="are both of arm 'lora', no seed and task"):
        read_evaluations([Place(tmp_path)], None, None)
