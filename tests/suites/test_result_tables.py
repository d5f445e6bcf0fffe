"""The tables of a suite whose runs have ended."""

import json
from math import inf
from pathlib import Path

import pytest

from schemabank.common.writing import write_json
from schemabank.runs.folder import RESULT
from schemabank.runs.members import Outcome
from schemabank.runs.stored import read_result
from schemabank.suites.suite import load_suite
from schemabank.suites.tables import result_tables
from tinyruns import Finished
from tinysuites import tiny


def perplexity(finished: Finished, value: float) -> dict[str, object]:
    """A result of a trained run, but scored by its perplexity."""
    group = {"num_items": 3, "num_clusters": 2, "num_tokens": 9, "gold_nll_with_end": 710.0}
    group |= {"perplexity": value, "perplexity_interval_95": [value, inf]}
    result = json.loads((finished.lora.folder / RESULT).read_text())
    return {**result, "metric": "perplexity", "scores": ["perplexity"], "groups": {"512": group}}


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ((2.0, 4.0), ["3.0000", "1.4142", "-9.7062 to 15.7062"]),
        ((inf, inf), ["inf", "", ""]),
        ((2.0, inf), ["inf", "", ""]),
        ((1.5e308, 1.5e308), ["1.5e+308", "", ""]),
        ((2.0, 1e200), ["5e+199", "", ""]),
    ],
)
def test_scores_beyond_what_floats_hold_are_shown_beside_the_others(
    scores: tuple[float, float], shown: list[str], finished: Finished, tmp_path: Path
) -> None:
    suite = load_suite(tiny(finished, tmp_path / "s.yaml", grid={}))
    outcomes = []
    for number, score in enumerate((*scores, 2.0, 4.0)):
        path = tmp_path / f"{number}.json"
        write_json(path, perplexity(finished, score))
        outcomes.append(Outcome(path, read_result(path)))
    ((title, _, rows),) = result_tables(suite, outcomes)
    assert title == "perplexity, 512"
    assert rows == [
        ["lora", "2", *shown],
        ["schemabank", "2", "3.0000", "1.4142", "-9.7062 to 15.7062"],
    ]
