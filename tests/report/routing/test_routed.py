"""What is known of the examples that are routed."""

import pytest

from schemabank.config.settings import RunConfig
from schemabank.config.task import TaskSettings
from schemabank.report.routing.routed import why_no_tags

TRAINED_ON = TaskSettings(name="gsm8k", train_limit=9, metric="numeric")


@pytest.mark.parametrize(
    ("changed", "split", "said"),
    [
        ({}, "train", None),
        ({"stop": ["a"], "metric": "f1", "end_token": False}, "train", None),
        ({"train_limit": 5}, "train", "trained on other data, gsm8k"),
        ({"gsm8k": {"validation_ratio": 0.5}}, "train", "trained on other data, gsm8k"),
        ({"train_limit": 5}, "test", "mean nothing beyond training"),
        ({"name": "conditional"}, "train", "trained on other data, gsm8k"),
    ],
)
def test_clusters_are_tags_of_the_very_examples_of_training(
    changed: dict[str, object], split: str, said: str | None
) -> None:
    task = TaskSettings.model_validate({**TRAINED_ON.model_dump(), **changed})
    tags = {"tagger": "cluster", "delivery": "loss"}
    run = RunConfig.model_validate({"arm": "schemabank", "task": task, "tags": tags})
    why = why_no_tags(run, [], [], split=split, trained_on=TRAINED_ON)
    assert why == said or (said is not None and said in str(why))
