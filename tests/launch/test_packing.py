import json

import pytest

from schemabank.config.settings import RunConfig
from schemabank.launch.packing import Tree, packed, unpacked


def again(trees: list[Tree]) -> list[Tree]:
    return [*unpacked(json.loads(json.dumps(packed(trees))))]


@pytest.mark.parametrize(
    "trees",
    [
        [{"a": 1}],
        [{"a": {"b": 1, "c": [1]}}, {"a": {"b": 1, "c": []}}, {"a": {"b": 2, "c": [1]}}],
        [{"a": {"x.y": 1, "z": 2}}, {"a": {"x.y": 1}}, {"a": {}}, {"a": None}, {"a": 7}],
        [{"a": 1, "b": 0}, {"a": 1.0, "b": False}, {"a": True, "b": None}],
        [{"a": [1, {"b": 0}]}, {"a": [True, {"b": 0}]}, {"a": [1, {"b": 0.0}]}, {"a": [1.0]}],
    ],
)
def test_trees_are_read_as_they_were_written(trees: list[Tree]) -> None:
    found = again(trees)
    assert json.dumps(found) == json.dumps(trees), "to the type of a number"


def test_the_settings_of_thousands_of_runs_take_few_bytes() -> None:
    arms = ("lora", "schemabank")
    trees = [RunConfig(arm=arm).model_dump(mode="json") for arm in arms]
    many = [{**tree, "seed": seed} for seed in range(500) for tree in trees]
    whole, ours = (len(json.dumps(value)) for value in (many, packed(many)))
    assert ours < whole / 50
    assert again(many) == many


def test_trees_that_were_read_have_nothing_in_common() -> None:
    first, second = again([{"a": {"b": [1]}}, {"a": {"b": [1]}}])
    first["a"]["b"].append(2)
    assert second == {"a": {"b": [1]}}
