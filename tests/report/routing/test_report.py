import json
from pathlib import Path
from typing import Any

import pytest

from schemabank.report.routing.report import tables, write_report

RECORD = Path(__file__).parents[3] / "results" / "routing" / "rule-tags.json"


def named(field: str, values: list[str]) -> dict[str, Any]:
    """A small report of one layer that relates schemas to a field."""
    layer = {"layer": 3, "usage": [0.75, 0.25], "probability": [0.7, 0.3], "entropy": 0.5}
    layer |= {"effective_schemas": 1.8, "load_balance": 1.1, "dead": [], "changed": None}
    known = {"value": 0.4, "field_entropy": 0.7, "shuffled_mean": 0.1, "shuffled_95": 0.2}
    place = {"layer": 3, "place": "answer", "field": field}
    usage = [[1.0, 0.0], *[[0.5, 0.5]] * (len(values) - 1)]
    return {
        "run": "schemabank-seed1-0",
        "task": "records",
        "split": "test",
        "num_examples": 4,
        "num_schemas": 2,
        "top_k": 1,
        "tags": "the tagger 'none' gives an example no tags of its own",
        "states": ["start", "end"],
        "layers": [{"state": state, **layer} for state in ("start", "end")],
        "information": [
            {"state": state, **place, **known, "p_value": 0.01} for state in ("start", "end")
        ],
        "reuse": [],
        "by_value": [{**place, "values": values, "usage": usage}],
        "schemas": [
            {
                "layer": 3,
                "schema": 0,
                "tokens": [{"text": "|`\n", "times_as_often": 2.0, "count": 3}],
                "examples": [{"id": "a|b", "share": 1.0, "prompt": ""}],
            }
        ],
    }


@pytest.mark.parametrize(
    "field",
    ["meta/type", "a:b", "it's", "a\\b", "answers.text", "a[0]", "schema", "layer", "x", "Größe 2"],
)
def test_any_name_of_a_field_becomes_a_figure(field: str, tmp_path: Path) -> None:
    write_report(tmp_path, named(field, ["first", "second", "²"]))
    (svg,) = tmp_path.glob("by-1-*-answer.svg")
    text = svg.read_text(encoding="utf-8")
    shown = field.replace("'", "&#39;") if field not in text else field
    assert shown in text
    for label in ("first", "second", "²", "layer 3", "share"):
        assert f">{label}<" in text
    assert "undefined" not in text
    assert f"]({svg.name})" in (tmp_path / "routing.md").read_text(encoding="utf-8")
    assert svg.with_suffix(".png").stat().st_size > 1000


def test_values_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_report(tmp_path, named("rule", ["rule-1", "rule-10", "rule-2"]))
    text = (tmp_path / "by-1-rule-answer.svg").read_text(encoding="utf-8")
    places = [text.index(f">rule-{number}<") for number in (1, 2, 10)]
    assert places == sorted(places)


def test_pages_hold_anybodys_text(tmp_path: Path) -> None:
    write_report(tmp_path, named("a|b", ["x" * 500, "y"]))
    page = (tmp_path / "routing.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        if line.startswith("|") and "---" not in line:
            assert line.replace("\\|", "").count("|") in {6, 8, 9}, line
    assert "`\\|'\\n` 2.0" in page
    (svg,) = tmp_path.glob("by-1-*.svg")
    assert "x" * 41 not in svg.read_text(encoding="utf-8")


def test_a_state_stands_beside_its_own_chance() -> None:
    _, (_, head, rows), *_ = tables(named("rule", ["1", "2"]))
    assert head == ["field", "place", "layer", "start", "end", "at most", "p at the end"]
    assert rows == [["rule", "answer", "3", "0.400 (0.200)", "0.400 (0.200)", "0.700", "0.01"]]


def test_the_recorded_routers_know_the_rule_beyond_chance() -> None:
    report = json.loads(RECORD.read_text(encoding="utf-8"))
    end = [
        row
        for row in report["information"]
        if (row["field"], row["state"]) == ("rule", "end") and row["place"] != "answer"
    ]
    assert len(end) == 4
    for row in end:
        assert row["value"] > 10 * row["shuffled_95"]
