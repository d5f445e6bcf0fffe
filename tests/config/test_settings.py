"""Defaults and presets are the method's tables, row by row; settings check themselves."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from schemabank.config.presets import PRESETS
from schemabank.config.settings import (
    BankSettings,
    CommonSettings,
    EvalSettings,
    ExperimentConfig,
    LoraSettings,
    RunConfig,
    Settings,
    Stage,
    TagSettings,
)
from schemabank.config.train import EQUAL_RATE_STAGES, THREE_STAGES, StageSettings, TrainSettings

SOUND = RunConfig(arm="lora")
PAPER = ExperimentConfig.model_validate({"arm": "lora", "preset": "paper", **PRESETS["paper"]})

# Rows of "SchemaBank", "Curriculum", "Tags", "Baseline and protocol" and "What sound means here".
BOTH = {
    "lora.r": 16,
    "lora.lora_alpha": 16.0,
    "lora.lora_dropout": 0.05,
    "lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "bank.num_schemas": 32,
    "bank.rank": 16,
    "bank.top_k": 2,
    "bank.attribute_dim": 32,
    "bank.last_n": 2,
    "bank.layers": None,
    "bank.orthonormality_weight": 0.01,
    "bank.entropy_weight": 0.0,
    "bank.load_balance_weight": 0.0,
    "tags.tagger": "hash",
    "tags.num_tags": 2,
    "train.weight_decay": 0.01,
    "train.max_grad_norm": 1.0,
    "train.batch_size": 4,
    "train.warmup_ratio": 0.05,
    "train.lr_scheduler_type": "linear",
    "task.max_length": 512,
    "task.prompt": None,
    "task.metric": None,
    "eval.routing": "off",
    "eval.split": "test",
}
SOUND_ONLY = {
    "task.target": "solution",
    "task.end_token": True,
    "task.completion_only_loss": True,
    "task.gsm8k.validation_ratio": 0.1,
    "curriculum": EQUAL_RATE_STAGES,
    "task.name": "gsm_symbolic",
    "model.name": "smollm2-135m-instruct",
    "bank.residual": True,
    "train.epoch_orders": 4,
    "tags.delivery": "loss",
    "eval.split": None,
    "eval.limit": None,
}
PAPER_ONLY = {
    "task.target": "final",
    "task.end_token": False,
    "task.completion_only_loss": False,
    "task.gsm8k.validation_ratio": 0.0,
    "curriculum": tuple(
        StageSettings.model_validate(stage.model_dump(exclude_defaults=True))
        for stage in THREE_STAGES
    ),
    "task.name": "gsm8k",
    "model.name": "Qwen/Qwen2-0.5B",
    "bank.residual": False,
    "tags.delivery": "prefix",
    "train.num_train_epochs": 10,
    "train.epoch_orders": 2,
    "train.learning_rate": 1e-4,
    "eval.split": "test",
    "eval.limit": 500,
    "eval.max_new_tokens": 200,
}


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"lora": {"r": True}}, "r"),
        ({"train": {"learning_rate": True}}, "learning_rate"),
        ({"seed": False}, "seed"),
        ({"eval": {"pass_at": [True]}}, "pass_at"),
        ({"task": {"max_cut_ratio": True}}, "max_cut_ratio"),
    ],
)
def test_a_truth_value_is_no_number(tree: dict[str, object], name: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){name}.*holds a truth value, allowed is none"):
        RunConfig.model_validate({"arm": "schemabank", **tree})


@pytest.mark.parametrize(
    "tree",
    [
        {"train": {"max_steps": 1e20}},
        {"train": {"batch_size": 10**12}},
        {"lora": {"r": 2**31}},
        {"lora": {"lora_alpha": 1e300}},
        {"bank": {"entropy_weight": -1e300}},
        {"eval": {"few_shot": 1e20}},
        {"seed": 2**63},
    ],
)
def test_numbers_have_bounds(tree: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"than or equal to|exceeded maximum size"):
        RunConfig.model_validate({"arm": "schemabank", **tree})


def value_at(config: BaseModel, key: str) -> Any:  # noqa: ANN401 -- settings are of any type
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("key", "expected"), {**BOTH, **SOUND_ONLY}.items())
def test_sound_is_the_methods_table(key: str, expected: object) -> None:
    assert value_at(SOUND, key) == expected
    assert type(value_at(SOUND, key)) is type(expected)


@pytest.mark.parametrize(("key", "expected"), {**BOTH, **PAPER_ONLY}.items())
def test_paper_is_the_methods_table(key: str, expected: object) -> None:
    assert value_at(PAPER, key) == expected


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    return {
        key
        for name, value in tree.items()
        for key in (
            leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
        )
    }


def test_presets_differ_in_the_listed_rows_only() -> None:
    assert PRESETS["sound"] == {}
    assert leaves(PRESETS["paper"]) == set(PAPER_ONLY)
    assert set(PRESETS) == {"sound", "paper"}


# Checks.


def settings_classes() -> list[type[Settings]]:
    found, queue = [], [Settings]
    while queue:
        children = queue.pop().__subclasses__()
        found += children
        queue += children
    return found


@pytest.mark.parametrize("settings", settings_classes(), ids=lambda c: c.__name__)
def test_every_setting_is_frozen_strict_about_names_and_documented(
    settings: type[Settings],
) -> None:
    config = settings.model_config
    assert config["frozen"]
    assert config["extra"] == "forbid"
    for name, field in settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SOUND.seed = 3


def test_top_k_beyond_the_schemas() -> None:
    with pytest.raises(ValidationError, match=r"top_k is 9, allowed is 1 to num_schemas = 8"):
        BankSettings(num_schemas=8, top_k=9)
    assert BankSettings(num_schemas=8, top_k=8).top_k == 8


@pytest.mark.parametrize("layers", [(), (1, 1), (0, 2, 0)])
def test_layers_must_be_distinct(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="allowed are distinct block indices"):
        BankSettings(layers=layers)


def test_field_tagger_needs_a_field() -> None:
    with pytest.raises(ValidationError, match=r"set tags\.field to a column"):
        TagSettings(tagger="field")
    assert TagSettings(tagger="field", field="template").field == "template"


def test_more_tags_than_schemas() -> None:
    with pytest.raises(ValidationError, match=r"tags\.num_tags is 5, .*num_schemas = 4: lower it"):
        RunConfig(
            arm="lora", tags=TagSettings(num_tags=5), bank=BankSettings(num_schemas=4, top_k=1)
        )


def stages(*ratios: float, names: str = "abcdef") -> tuple[Stage, ...]:
    return tuple(
        Stage(name=name, ratio=ratio, train=("lora",), learning_rate=1e-4)
        for name, ratio in zip(names, ratios, strict=False)
    )


def test_ratios_must_sum_to_one() -> None:
    with pytest.raises(ValidationError, match=r"ratios sum to 0\.9, allowed is 1"):
        RunConfig(arm="schemabank", curriculum=stages(0.5, 0.4))
    thirds = stages(0.333333, 0.333333, 0.333334)
    assert RunConfig(arm="schemabank", curriculum=thirds).stages() == thirds


def test_stage_names_must_differ() -> None:
    with pytest.raises(ValidationError, match="give every stage a name of its own"):
        RunConfig(arm="schemabank", curriculum=stages(0.5, 0.5, names="aa"))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("lora", "lora_dropout", 1.0),
        ("lora", "r", 0),
        ("lora", "target_modules", ()),
        ("lora", "layers_to_transform", ()),
        ("lora", "layers_to_transform", (-1,)),
        ("lora", "layers_to_transform", (1, 1)),
        ("train", "learning_rate", 0),
        ("train", "learning_rate", float("inf")),
        ("train", "adam_beta2", 1.0),
        ("train", "weight_decay", -0.1),
        ("bank", "entropy_weight", float("nan")),
        ("task", "max_cut_ratio", 1.1),
        ("engine", "slots", 0),
    ],
)
def test_values_out_of_range(section: str, name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        RunConfig.model_validate({"arm": "lora", section: {name: value}})


# Runs.


def test_arm_lora_has_one_plain_stage_with_its_own_rate() -> None:
    (stage,) = RunConfig.model_validate(
        {
            "arm": "lora",
            "train": {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.2},
        }
    ).stages()
    assert stage == Stage(
        name="lora",
        ratio=1.0,
        train=("lora",),
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_ratio=0.2,
    )


def test_arm_base_trains_nothing_and_schemabank_has_the_curriculum() -> None:
    assert RunConfig(arm="base").stages() == ()
    paper = RunConfig(arm="schemabank", curriculum=PAPER.curriculum, train=PAPER.train)
    assert paper.stages() == THREE_STAGES


@pytest.mark.parametrize("preset", [SOUND, PAPER])
def test_presets_keep_their_rates_for_both_arms(preset: CommonSettings) -> None:
    rates = {SOUND: [1e-3, 1e-3, 1e-3, 5e-4], PAPER: [1e-4, 1e-3, 1e-4, 5e-5]}[preset]
    common = {name: getattr(preset, name) for name in CommonSettings.model_fields}
    runs = [RunConfig(arm=arm, **common) for arm in ("lora", "schemabank")]
    assert [stage.learning_rate for run in runs for stage in run.stages()] == rates


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", 3e-3, [3e-3, 3e-3, 3e-3, 1.5e-3]),
        ("lr_scheduler_type", "cosine", ["cosine"] * 4),
        ("warmup_ratio", 0.2, [0.2] * 4),
    ],
)
def test_what_train_says_of_the_learning_rate_moves_both_arms_alike(
    name: str, value: object, expected: list[object]
) -> None:
    settings = {"arm": ["lora", "schemabank"], "train": {name: value}}
    runs = ExperimentConfig.model_validate(settings).runs()
    assert [getattr(stage, name) for run in runs for stage in run.stages()] == expected


def test_a_stage_may_have_settings_of_its_own() -> None:
    own = {"learning_rate": 2e-4, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    stage = StageSettings.model_validate({"name": "a", "ratio": 1.0, "train": ["lora"], **own})
    found = stage.resolved(TrainSettings(learning_rate=1.0, lr_scheduler_type="cosine"))
    assert {name: getattr(found, name) for name in own} == own
    assert found.resolved(TrainSettings()) == found
    third = StageSettings(name="a", ratio=1.0, train=("lora",), learning_rate_ratio=0.3)
    assert third.resolved(TrainSettings(learning_rate=1e-3)).learning_rate == 3e-4


def test_a_stage_has_a_rate_or_a_share_of_one() -> None:
    with pytest.raises(ValidationError, match=r"'a' has learning_rate 0\.1 and .*_ratio 2"):
        StageSettings(name="a", ratio=1, train=["lora"], learning_rate=0.1, learning_rate_ratio=2)


@pytest.mark.parametrize(
    ("arm", "few_shot", "routing"),
    [("base", 4, "off"), ("lora", 0, "off"), ("schemabank", 0, "on")],
)
def test_shots_are_for_the_base_and_routing_for_the_bank(
    arm: str, few_shot: int, routing: str
) -> None:
    run = RunConfig.model_validate({"arm": arm, "eval": {"few_shot": 4, "routing": "on"}})
    found = run.evaluation()
    assert (found.few_shot, found.routing) == (few_shot, routing)
    assert found.split == run.eval.split


def expanded(arm: object, seed: object) -> list[tuple[str, int]]:
    config = ExperimentConfig.model_validate({"arm": arm, "seed": seed})
    return [(run.arm, run.seed) for run in config.runs()]


def test_runs_are_every_arm_with_every_seed() -> None:
    assert expanded("lora", 7) == [("lora", 7)]
    assert expanded(["lora", "schemabank"], [1, 2]) == [
        ("lora", 1),
        ("lora", 2),
        ("schemabank", 1),
        ("schemabank", 2),
    ]


def test_the_base_needs_one_seed_and_repeats_count_once() -> None:
    assert expanded(["base", "lora", "base"], [5, 3, 5]) == [("base", 5), ("lora", 5), ("lora", 3)]


def test_runs_carry_all_common_settings() -> None:
    config = ExperimentConfig.model_validate(
        {"arm": "lora", "preset": "paper", **PRESETS["paper"], "lora": {"r": 3}}
    )
    (run,) = config.runs()
    for name in CommonSettings.model_fields:
        assert getattr(run, name) == getattr(config, name)
    assert run.lora == LoraSettings(r=3)
    assert run.preset == "paper"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 2}, "at temperature 0 all samples"),
        ({"pass_at": [1, 5], "num_samples": 4, "temperature": 1}, "pass_at names 5, which 4"),
        ({"top_p": 0}, "top_p"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        EvalSettings.model_validate(settings)


def test_the_default_is_what_the_evidence_supports() -> None:
    """Plain LoRA beside the untouched model: docs/findings.md."""
    assert [run.arm for run in ExperimentConfig().runs()] == ["base", "lora"]


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("all-linear", ("all-linear",)),
        (r".*\.(q|v)_proj", (r".*\.(q|v)_proj",)),
        (["q_proj", r".*layers\.1\.mlp.*"], ("q_proj", r".*layers\.1\.mlp.*")),
    ],
)
def test_targets_may_be_a_text_where_only_a_model_says_which_they_are(
    given: object, targets: tuple[str, ...]
) -> None:
    found = LoraSettings.model_validate({"target_modules": given})
    assert found.target_modules == targets
    assert LoraSettings.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize("given", ["*.q_proj", ["q_proj", "(v_proj|"]])
def test_what_is_no_regular_expression_is_refused(given: object) -> None:
    with pytest.raises(ValidationError, match="which is no regular expression"):
        LoraSettings.model_validate({"target_modules": given})


@pytest.mark.parametrize("given", ["q_proj", "q_proj, v_proj", "q_proj v_proj"])
def test_a_text_of_names_is_no_pattern(given: str) -> None:
    with pytest.raises(ValidationError, match="should be a valid tuple"):
        LoraSettings.model_validate({"target_modules": given})
