"""Settings that play no part where routing is analysed: refused, or said to have no effect."""

import pytest

from schemabank.common.errors import InputError
from schemabank.config.settings import RunConfig
from schemabank.runs.effects import check_asked_of_routing, idle_in_routing, sentences


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("arm=base", "training, which is over"),
        ("seed=99", "training, which is over"),
        ("preset=paper", "training, which is over"),
        ("train.learning_rate=1", "training, which is over"),
        ("lora.r=8", "training, which is over"),
        ("tags.tagger=content", "training, which is over"),
        ("curriculum.joint.ratio=1", "training, which is over"),
        ("bank.init_std=1", "training, which is over"),
        ("engine.keep_stages=false", "training, which is over"),
        ("engine.slots=3", "training, which is over"),
        ("eval.limit=3", "completions, and routing needs none"),
        ("eval.routing=on", "completions, and routing needs none"),
    ],
)
def test_routing_refuses_settings_that_play_no_part(override: str, kind: str) -> None:
    name = override.partition("=")[0]
    message = (
        rf"--set '{override}': {name} is a setting of {kind}: allowed are model, task and bank"
    )
    with pytest.raises(InputError, match=message):
        check_asked_of_routing(["task.max_length=96", override])


def test_routing_takes_what_it_uses_and_settings_of_tokens() -> None:
    settings = ["task.name=records", "task.records.path=x", "task.max_length=96", "bank.top_k=1"]
    check_asked_of_routing([*settings, "eval.split=train", "model.name=x", "engine.device=cpu"])


def of_settings(**settings: object) -> RunConfig:
    return RunConfig.model_validate({"arm": "schemabank", **settings})


def test_what_is_set_without_effect_on_routing_is_said() -> None:
    asked = ["task.max_length=96", "task.target=final", "bank.top_k=1", "task.end_token=false"]
    asked += ["task.stop=[a]", "task.metric=f1", "task.train_limit=5", "eval.split=test"]
    assert sentences(idle_in_routing(asked, of_settings())) == [
        "no effect: task.max_length, task.end_token (texts are routed from end to end, and nothing "
        "is trained)",
        "no effect: task.stop, task.metric (routing asks for no completions and scores none)",
        "no effect: task.train_limit (nothing is trained, and no tags are sought by clusters)",
    ]
    assert "no effect: eval.split (--split says that train is routed)" in sentences(
        idle_in_routing(asked, of_settings(), split="train")
    )


@pytest.mark.parametrize(
    ("tags", "split", "has_effect"),
    [
        ({"tagger": "cluster", "delivery": "loss"}, "train", True),
        ({"tagger": "cluster", "delivery": "prefix"}, "train", False),
        ({"tagger": "cluster", "delivery": "loss"}, "test", False),
        ({"tagger": "cluster", "delivery": "loss"}, None, False),
        ({"tagger": "hash", "delivery": "loss"}, "train", False),
    ],
)
def test_the_training_examples_matter_where_tags_are_their_clusters(
    tags: dict[str, str], split: str | None, has_effect: bool
) -> None:
    idle = idle_in_routing(["task.train_limit=5"], of_settings(tags=tags), split=split)
    assert (idle == []) == has_effect


@pytest.mark.parametrize(
    ("task", "asked", "names"),
    [
        (
            {"name": "perplexity"},
            ["task.target=final", "task.prompt=x"],
            ["task.target", "task.prompt"],
        ),
        ({"name": "humaneval"}, ["task.humaneval.timeout_s=1"], ["task.humaneval.timeout_s"]),
        ({"name": "gsm8k"}, ["task.gsm8k.validation_ratio=0.2", "task.chat_template=true"], []),
        # The answer of a row has no blanks around it and, if it is a number, no commas.
        ({"name": "records", "records": {"path": "x"}}, ["task.target=final"], []),
        (
            {"name": "records", "records": {"path": "x"}},
            ["task.end_token=false", "task.prompt='{q}'"],
            ["task.end_token"],
        ),
    ],
)
def test_of_a_task_what_its_questions_do_not_hold_is_said(
    task: dict[str, object], asked: list[str], names: list[str]
) -> None:
    run = of_settings(task=task)
    assert [idle.name for idle in idle_in_routing(asked, run)] == names
