"""Whoever states a setting that changes nothing hears of it, and nobody else hears anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ourconfigs import FILES, SUITES
from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.config.settings import RunConfig
from schemabank.runs.effects import (
    check_asked_of_evaluation,
    check_asked_of_routing,
    idle_in_evaluation,
    idle_in_experiment,
    sentences,
)
from schemabank.suites.suite import load_suite

BARE = {"name": "rest", "ratio": 0.5, "train": ["router"], "bank_scale": [0, 0]}
LORA_ONLY = {"name": "last", "ratio": 0.5, "train": ["lora"]}
TAGGED = {**LORA_ONLY, "name": "only", "ratio": 1.0, "tag_keep": [1.0]}
OWN_RATE = {"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.0}


def told(path: Path, settings: Mapping[str, Any], *overrides: str) -> list[str]:
    """What a configuration's user is told."""
    path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return sentences(idle_in_experiment(load_experiment(path, overrides)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def both(**settings: object) -> dict[str, object]:
    return {"arm": ["lora", "schemabank"], **settings}


def bank(**settings: object) -> dict[str, object]:
    return {"arm": "schemabank", **settings}


CASES: dict[str, tuple[dict[str, object], str]] = {
    "swap has a mean of its own": (
        {"arm": "swap", "average": {"kind": "bema"}},
        "average.kind (no setting of the arm swap)",
    ),
    "lora trains no bank": ({"arm": "lora", "bank": {"rank": 4}}, "bank.rank (the arm lora has"),
    "lora has no tags": ({"arm": "lora", "tags": {"num_tags": 4}}, "tags.num_tags (the arm lora"),
    "lora has no stages": (
        {"arm": "lora", "curriculum": [{**TAGGED}]},
        "no effect: curriculum.only.ratio",
    ),
    "lora keeps no stages": (
        {"arm": "lora", "engine": {"keep_stages": True}},
        "engine.keep_stages",
    ),
    "base has no targets to end": (
        {"arm": "base", "task": {"end_token": False}},
        "no effect: task.end_token (the arm base trains nothing)",
    ),
    "pieces of texts have no prompts": (
        {"arm": "base", "task": {"name": "perplexity", "prompt": "{question}!"}},
        "no effect: task.prompt (perplexity asks pieces of its texts, not prompts)",
    ),
    "lora has no settings of coto": (
        {"arm": "lora", "coto": {"rising_ratio": 0.5}},
        "coto.rising_ratio (no setting of the arm lora)",
    ),
    "coto that begins whole": (
        {"arm": "coto", "coto": {"initial_probability": 1, "rising_ratio": 0.5}},
        "coto.rising_ratio (coto.initial_probability is 1",
    ),
    "coto that does not rise": (
        {"arm": "coto", "coto": {"initial_probability": 0.5, "rising_ratio": 0}},
        "coto.initial_probability (coto.rising_ratio is 0",
    ),
    "Muon has one decay rate": (
        {"arm": "lora", "train": {"optimizer": "muon", "adam_beta2": 0.9, "adam_epsilon": 1e-6}},
        "train.adam_beta2, train.adam_epsilon (train.optimizer is muon, which has neither)",
    ),
    "no stage trains what Muon updates": (
        bank(curriculum=[{**TAGGED, "train": ["router"]}], train={"optimizer": "muon"}),
        "train.optimizer (no stage trains lora)",
    ),
    "no average, no decay": (
        {"arm": "lora", "average": {"decay": 0.9}},
        "average.decay (average.kind is none)",
    ),
    "one checkpoint has no span": (
        {"arm": "lora", "average": {"kind": "last", "last": 1, "span_ratio": 0.5}},
        "average.span_ratio (average.last is 1",
    ),
    "an adapter that is not trained has no scale": (
        bank(curriculum=[{**TAGGED, "train": ["router"]}], rescale={"factors": [0.5]}),
        "rescale.factors (no stage trains lora)",
    ),
    "base has no scale": (
        {"arm": "base", "rescale": {"factors": [0.5]}},
        "rescale.factors (the arm base trains nothing)",
    ),
    "lora has no routing": ({"arm": "lora", "eval": {"routing": "on"}}, "schemabank alone has a"),
    "lora sees no shots": ({"arm": "lora", "eval": {"few_shot": 8}}, "the arm base alone is shown"),
    "base trains nothing": (
        {"arm": "base", "train": {"batch_size": 8}, "task": {"max_length": 64}},
        "train.batch_size (the arm base trains nothing)",
    ),
    "base has one seed": ({"arm": "base", "seed": [1, 2]}, "every seed but the first (nothing of"),
    "shots without base": (
        {"arm": "lora", "base_shots": [0, 8]},
        "base_shots (the arm base is not",
    ),
    "shots twice": (
        {"arm": ["base", "lora"], "base_shots": [0, 8], "eval": {"few_shot": 4}},
        "eval.few_shot (base_shots says",
    ),
    "an arm twice": ({"arm": ["lora", "lora"]}, "naming one arm twice (a run is made once)"),
    "a seed twice": ({"arm": "lora", "seed": [1, 1]}, "naming one seed twice"),
    "every stage has a rate": (
        bank(curriculum=[{**TAGGED, **OWN_RATE}], train={"learning_rate": 1e-3}),
        "train.learning_rate (every stage of the arm schemabank has a learning_rate of its own)",
    ),
    "every stage has a schedule": (
        bank(curriculum=[{**TAGGED, **OWN_RATE}], train={"lr_scheduler_type": "linear"}),
        "train.lr_scheduler_type (every stage",
    ),
    "every stage has a warm-up": (
        bank(curriculum=[{**TAGGED, **OWN_RATE}], train={"warmup_ratio": 0.1}),
        "train.warmup_ratio (every stage",
    ),
    "the preset's stages have rates": (
        bank(preset="paper", train={"learning_rate": 1e-3}),
        "train.learning_rate (every stage",
    ),
    "steps and epochs": (
        {"arm": "lora", "train": {"max_steps": 5, "num_train_epochs": 3}},
        "train.num_train_epochs (train.max_steps counts instead)",
    ),
    "orders of one epoch": (
        {"arm": "lora", "train": {"epoch_orders": 8, "num_train_epochs": 1}},
        "train.epoch_orders (a single epoch",
    ),
    "layers and last_n": (bank(bank={"layers": [0], "last_n": 1}), "bank.last_n (bank.layers says"),
    "no stage uses the bank": (
        bank(curriculum=[BARE, {**LORA_ONLY, "bank_scale": [0, 0]}], bank={"rank": 4}),
        "bank.rank (no stage uses the bank)",
    ),
    "no stage trains schemas": (
        bank(curriculum=[TAGGED], bank={"orthonormality_weight": 0.1}),
        "bank.orthonormality_weight (no stage trains schemas)",
    ),
    "a bare stage's bank": (
        bank(curriculum=[{**BARE, "bare_tail_ratio": 0.5}, {**LORA_ONLY, "tag_keep": [1]}]),
        "curriculum.rest.bare_tail_ratio (the stage rest is bare from its start)",
    ),
    "a bare stage's tags": (
        bank(curriculum=[{**BARE, "tag_keep": [1.0]}, {**LORA_ONLY, "tag_keep": [1.0]}]),
        "curriculum.rest.tag_keep (tags are told by a loss on the router",
    ),
    "no tagger": (
        bank(tags={"tagger": "none", "num_tags": 3}),
        "tags.num_tags (tags.tagger is none)",
    ),
    "a field for another tagger": (
        bank(tags={"tagger": "hash", "field": "template"}),
        "tags.field (tags.tagger is hash, not field)",
    ),
    "no stage shows tags": (
        bank(curriculum=[{**TAGGED, "tag_keep": []}], tags={"num_tags": 3}),
        "tags.num_tags (no stage has a tag_keep above 0)",
    ),
    "a loss beside a prefix": (
        bank(tags={"delivery": "prefix", "loss_weight": 2.0}),
        "tags.loss_weight (tags.delivery is prefix)",
    ),
    "a loss of no weight": (
        bank(tags={"num_tags": 3, "loss_weight": 0.0}),
        "tags.num_tags, tags.loss_weight (tags.loss_weight is 0",
    ),
    "another task": (
        {"arm": "lora", "task": {"name": "gsm_symbolic", "gsm8k": {"validation_ratio": 0.2}}},
        "task.gsm8k.validation_ratio (task.name is gsm_symbolic)",
    ),
    "marks of bare answers": (
        {
            "arm": "lora",
            "task": {"name": "gsm8k", "target": "final", "gsm8k": {"calculator_marks": True}},
        },
        "task.gsm8k.calculator_marks (task.target is final",
    ),
    "pieces of a book": (
        {"arm": "lora", "task": {"name": "perplexity", "end_token": True}},
        "task.end_token (targets of perplexity have no end token)",
    ),
    "no completions": (
        {"arm": "lora", "task": {"name": "perplexity"}, "eval": {"max_new_tokens": 9}},
        "eval.max_new_tokens (the metric perplexity asks for no completions)",
    ),
    "a share beside a split": (
        {
            "arm": "lora",
            "task": {
                "name": "records",
                "records": {"path": "x", "test_split": "dev", "test_ratio": 0.2},
            },
        },
        "task.records.test_ratio (task.records.test_split names",
    ),
    "a revision of a file": (
        {"arm": "lora", "task": {"name": "records", "records": {"path": "/", "revision": "x"}}},
        "task.records.revision (the data lie on this machine",
    ),
    "draws at temperature 0": (
        {"arm": "lora", "eval": {"top_p": 0.9, "sampling_seed": 3}},
        "eval.top_p, eval.sampling_seed (eval.temperature is 0, so nothing is drawn)",
    ),
    "a project without trackers": (
        {"arm": "lora", "engine": {"tracker_project": "x"}},
        "engine.tracker_project (engine.trackers names none)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changes_nothing_is_said_with_its_reason(case: str, path: Path) -> None:
    settings, expected = CASES[case]
    found = told(path, settings)
    assert any(expected in sentence for sentence in found), found
    assert all(sentence.startswith("no effect: ") for sentence in found)


USED: dict[str, dict[str, object]] = {
    "base has an evaluation to go on with": {
        "arm": "base",
        "engine": {"checkpoint_minutes": 1, "checkpoint_steps": 5},
    },
    "nothing stated": {"arm": ["base", "lora", "schemabank"], "seed": [1, 2]},
    "the preset's settings are not the user's": {"arm": "lora", "preset": "paper"},
    "one of several arms uses it": {
        "arm": ["base", "lora", "schemabank"],
        "bank": {"rank": 4},
        "tags": {"num_tags": 3},
        "eval": {"few_shot": 8, "routing": "on"},
        "train": {"learning_rate": 1e-4, "warmup_ratio": 0.1},
    },
    "stages follow": bank(train={"learning_rate": 1e-3, "lr_scheduler_type": "cosine"}),
    "one stage follows": bank(
        curriculum=[{**TAGGED, **OWN_RATE, "ratio": 0.5}, LORA_ONLY],
        train={"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1},
    ),
    "plain LoRA follows": both(curriculum=[{**TAGGED, **OWN_RATE}], train={"learning_rate": 1e-3}),
    "draws": {"arm": "lora", "eval": {"temperature": 0.7, "top_p": 0.9, "sampling_seed": 3}},
    "tags by text in a bare stage": bank(
        curriculum=[{**BARE, "tag_keep": [1.0]}, {**LORA_ONLY}], tags={"delivery": "prefix"}
    ),
    "a scale for one arm": {"arm": ["base", "lora"], "rescale": {"factors": [0.5, 2]}},
    "AdamW beside Muon, for banks": bank(train={"optimizer": "muon", "adam_beta2": 0.9}),
    "AdamW beside Muon, for routers": {
        "arm": "experts",
        "experts": {"routing": "learned"},
        "train": {"optimizer": "muon", "adam_epsilon": 1e-6},
    },
    "branches go on into other epochs": {
        "arm": "swap",
        "train": {"num_train_epochs": 1, "epoch_orders": 2},
    },
    "several shots": {"arm": ["base", "lora"], "base_shots": [0, 8]},
}


@pytest.mark.parametrize("case", USED)
def test_nothing_is_said_of_what_some_run_uses(case: str, path: Path) -> None:
    assert told(path, USED[case]) == []


def test_a_setting_of_the_command_line_is_the_users(path: Path) -> None:
    assert told(path, {"arm": "lora"}, "bank.rank=4", "lora.r=4") == [
        "no effect: bank.rank (the arm lora has neither bank nor stages)"
    ]
    found = told(path, {"arm": "lora"}, "curriculum.joint.learning_rate=1e-4")
    assert len(found) == 1
    assert "curriculum." in found[0]


@pytest.mark.parametrize("config", FILES, ids=lambda p: p.stem)
def test_our_own_configurations_state_nothing_in_vain(config: Path) -> None:
    if config in SUITES:
        assert load_suite(config, ["engine.device=cpu"]).notes == ()
    else:
        assert sentences(idle_in_experiment(load_experiment(config))) == []


# Suites.


def suite(path: Path, **settings: object) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_an_average_that_an_arm_has_not_is_said_of_this_arm(path: Path) -> None:
    arms = {"arm": ["lora", "swap"]}
    reason = "(the method swap has no such setting, while others have)"
    said = f"no effect: average.kind of the arm 'swap' {reason}"
    assert told(path, {**arms, "average": {"kind": "bema"}}) == [said]
    assert told(path, {**arms, "average": {"kind": "none"}}) == []
    everywhere = told(path, {**arms, "average": {"kind": "bema", "last": 3}})
    assert [line.count("average.last") for line in everywhere] == [1, 0]
    assert told(path, {**arms, "arm": ["base", "lora"], "average": {"kind": "bema"}}) == []
    suite = {
        "defaults": {"average": {"kind": "bema", "lag": 7}},
        "arms": {"lora": {}, "mean": {"arm": "swap"}, "schemabank": {}},
    }
    path.write_text(yaml.safe_dump(suite))
    both = "average.kind of the arm 'mean', average.lag of the arm 'mean'"
    assert load_suite(path).notes == (f"no effect: {both} {reason}",)


def test_a_suite_says_what_of_its_defaults_and_overrides_no_run_uses(path: Path) -> None:
    arms = {"lora": {}, "wide": {"arm": "lora", "lora": {"r": 32}}}
    file = suite(path, defaults={"bank": {"rank": 4}, "lora": {"lora_alpha": 8}}, arms=arms)
    assert load_suite(file, ["tags.num_tags=3"]).notes == (
        "no effect: bank.rank, tags.num_tags (the arm lora has neither bank nor stages)",
    )
    file = suite(path, defaults={"bank": {"rank": 4}}, arms={**arms, "schemabank": {}})
    assert load_suite(file, ["tags.num_tags=3"]).notes == ()


def test_a_setting_that_makes_its_arm_no_other_is_refused(path: Path) -> None:
    file = suite(path, arms={"lora": {}, "wide": {"arm": "lora", "bank": {"rank": 4}}})
    with pytest.raises(
        InputError, match=r"run\.yaml:6: bank\.rank has no effect in the arm 'wide'"
    ):
        load_suite(file)
    own = {"arm": "schemabank", "curriculum": [{**TAGGED, **OWN_RATE}]}
    file = suite(path, arms={"lora": {}, "b": {**own, "train": {"learning_rate": 1e-2}}})
    with pytest.raises(InputError, match=r"train\.learning_rate has no effect in the arm 'b'"):
        load_suite(file)


def test_a_copied_detail_of_a_stage_is_only_said(path: Path) -> None:
    copied = [{**BARE, "tag_keep": [1.0]}, {**LORA_ONLY, "tag_keep": [1.0]}]
    arms = {"lora": {}, "rest": {"arm": "schemabank", "curriculum": copied}}
    (note,) = load_suite(suite(path, arms=arms)).notes
    assert note.startswith("no effect: curriculum.rest.tag_keep of the arm 'rest' (tags are told")


# Evaluation.


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=1",
        "lora.r=8",
        "curriculum.joint.ratio=1",
        "task.max_length=9",
        "arm=base",
        "seed=99",
        "preset=paper",
        "bank.entropy_weight=1",
        "engine.slots=3",
        "rescale.factors=[0.5]",
        "task.end_token=false",
        "engine.trackers=[wandb]",
        "tags.tagger=none",
    ],
)
def test_evaluation_refuses_settings_of_training(override: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(InputError, match=rf"{name} is a setting of training, which is over"):
        check_asked_of_evaluation(["eval.limit=3", override])


def test_evaluation_takes_what_it_uses() -> None:
    check_asked_of_evaluation(
        ["eval.limit=3", "bank.top_k=1", "task.name=gsm8k", "model.name=x", "engine.device=cpu"]
    )


def test_a_whole_section_is_looked_through() -> None:
    with pytest.raises(
        InputError, match=r"'engine=\{slots: 3\}': engine\.slots is a setting of tr"
    ):
        check_asked_of_evaluation(["engine={slots: 3}"])
    with pytest.raises(InputError, match=r"eval\.limit is a setting of completions"):
        check_asked_of_routing(["eval={split: test, limit: 3}"])


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("lora={}", "lora"),
        ("train={}", "train"),
        ("tags={}", "tags"),
        ("lora.target_modules={}", "lora.target_modules"),
        ("bank={}", "bank.init_std"),
        ("engine={}", "engine.keep_stages"),
    ],
)
def test_an_empty_section_sets_all_that_is_in_it(override: str, refused: str) -> None:
    message = rf"--set '{override}': {refused} is a setting of training, which is over"
    for check in (check_asked_of_evaluation, check_asked_of_routing):
        with pytest.raises(InputError, match=message):
            check([override])
    check_asked_of_evaluation(["eval={}"])
    with pytest.raises(InputError, match=r"'eval=\{\}': eval\.\w+ is a setting of completions"):
        check_asked_of_routing(["eval={}"])


def of_settings(**settings: object) -> RunConfig:
    return RunConfig.model_validate({"arm": "schemabank", **settings})


def test_what_is_set_without_effect_on_an_evaluation_is_said() -> None:
    run = of_settings(task={"name": "gsm8k"})
    asked = ["bank.top_k=1", "eval.top_p=0.5", "task.perplexity.num_targets=9", "eval.limit=3"]
    assert sentences(idle_in_evaluation(asked, [run])) == [
        "no effect: bank.top_k (eval.routing is off, so there is no bank)",
        "no effect: eval.top_p (eval.temperature is 0, so nothing is drawn)",
        "no effect: task.perplexity.num_targets (task.name is gsm8k)",
    ]
    routed = of_settings(eval={"routing": "on"})
    assert idle_in_evaluation(["bank.top_k=1"], [run, routed]) == []
    books = of_settings(task={"name": "perplexity"})
    assert [idle.name for idle in idle_in_evaluation(["task.target=final"], [books])] == [
        "task.target"
    ]
    assert idle_in_evaluation(["task.target=final"], [run]) == []


def test_a_suite_takes_no_preset_on_the_command_line(path: Path) -> None:
    file = suite(path, arms={"lora": {}})
    with pytest.raises(InputError, match=r"'preset=paper': a preset comes before all other"):
        load_suite(file, ["preset=paper"])
