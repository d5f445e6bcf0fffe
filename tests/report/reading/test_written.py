"""Results that the tools themselves wrote: the README beside each names version and command."""

from pathlib import Path

from schemabank.report.reading.inspectlogs import read_log
from schemabank.report.reading.lmeval import read_run
from schemabank.report.reading.places import ResultFile

FIXTURES = Path(__file__).parents[2] / "fixtures"


def test_lm_eval_with_its_dummy_model() -> None:
    (path,) = (FIXTURES / "lm_eval_dummy").glob("results_*.json")
    (found,) = read_run(ResultFile(path, "dummy", "1"), None, "topic")
    assert (found.task, found.metric, found.mean) == ("words", "exact_match,none", 2 / 3)
    assert [item.score for item in found.items.values()] == [1.0, 0.0, 1.0]
    assert [item.cluster for item in found.items.values()] == ["sums", "sums", "words"]
    assert found.conditions["n-shot"] == "0"


def test_inspect_packs_its_logs_with_zstandard() -> None:
    (path,) = (FIXTURES / "inspect_mockllm").glob("*.eval")
    found = read_log(ResultFile(path, None, None), None, "topic")
    assert (found.arm, found.task, found.metric) == ("mockllm/model", "sums", "match")
    assert [item.score for item in found.items.values()] == [1.0, 0.0]
    assert [item.cluster for item in found.items.values()] == ["sums", "words"]
