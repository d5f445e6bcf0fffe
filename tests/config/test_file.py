"""Files, overrides and ids; every error says where, what is wrong, what is allowed, what to do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from schemabank.common.errors import InputError
from schemabank.config.file import (
    config_hash,
    load_experiment,
    load_run,
    overridden,
    run_id,
    to_yaml,
)
from schemabank.config.methods import METHODS
from schemabank.config.presets import PRESETS
from schemabank.config.settings import (
    EvalSettings,
    ExperimentConfig,
    LoraSettings,
    RunConfig,
    Settings,
    TrainSettings,
)
from schemabank.config.task import TASK_NAMES
from schemabank.config.train import EQUAL_RATE_STAGES

TWO_STAGES = """\
arm: schemabank
curriculum:
  - name: start
    ratio: 0.5
    train: [router]
    learning_rate: 1e-3
  - name: end
    ratio: 0.5
    train: [lora]
    learning_rate: 1e-4
"""


*FIRST, LAST = map(repr, METHODS)
ARMS = f"{', '.join(FIRST)} or {LAST}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def load(path: Path, text: str, *overrides: str) -> ExperimentConfig:
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, overrides)


def message(path: Path, text: str, *overrides: str) -> str:
    """The error's sentence, with the file's name for its path."""
    with pytest.raises(InputError) as error:
        load(path, text, *overrides)
    return str(error.value).replace(str(path), path.name)


# Files.


def test_a_file_states_differences_only(path: Path) -> None:
    config = load(path, "arm: lora\nlora:\n  r: 4\n")
    assert config == ExperimentConfig.model_validate({"arm": "lora", "lora": {"r": 4}})


def test_a_preset_lies_under_the_file_and_overrides_above(path: Path) -> None:
    text = "preset: paper\narm: [lora, schemabank]\ntrain:\n  num_train_epochs: 4\n"
    config = load(path, text, "eval.limit=7")
    assert (config.preset, config.arm) == ("paper", ("lora", "schemabank"))
    assert config.train == TrainSettings(num_train_epochs=4, epoch_orders=2, learning_rate=1e-4)
    assert (config.eval.limit, config.eval.max_new_tokens) == (7, 200)
    assert config.task.gsm8k.validation_ratio == 0.0
    assert PRESETS["paper"]["eval"] == {"split": "test", "limit": 500, "max_new_tokens": 200}


def test_a_preset_on_the_command_line(path: Path) -> None:
    assert load(path, "arm: lora\n", "preset=paper").model.name == "Qwen/Qwen2-0.5B"


def test_numbers_may_be_written_without_a_dot(path: Path) -> None:
    config = load(path, "arm: lora\ntrain:\n  learning_rate: 1e-4\n", "train.weight_decay=1e-2")
    assert (config.train.learning_rate, config.train.weight_decay) == (1e-4, 1e-2)


def test_a_text_that_looks_like_a_number_stays_a_text(path: Path) -> None:
    assert load(path, "arm: lora\n", "model.revision=12e4567").model.revision == "12e4567"


def test_routing_on_and_off_are_words(path: Path) -> None:
    assert load(path, "arm: lora\neval:\n  routing: on\n").eval.routing == "on"
    assert load(path, "arm: lora\n", "eval.routing=off").eval.routing == "off"
    switches = load(path, "arm: lora\ntask:\n  end_token: false\n", "bank.residual=off")
    assert (switches.task.end_token, switches.bank.residual) == (False, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arm: [", "run.yaml is not valid YAML (while parsing"),
        ("arm: lora\n\ttrain: 1", "run.yaml is not valid YAML (while scanning"),
        (
            "? [a]\n: 2\n",
            "run.yaml:1 has a key that is not text, a list or a mapping: allowed",
        ),
        ("- arm\n", "run.yaml holds a list, allowed are keys and values: write settings like"),
        (
            "curriculum: [{ratio: 1.0}]",
            "run.yaml:1: curriculum.0.name is missing: add it (",
        ),
        (
            "arm: lora\nseed: 1\narm: base\n",
            "run.yaml:3: arm is already in line 1, allowed is once: remove one of them",
        ),
        (
            "arm: lora\n1: 2\n",
            "run.yaml:2 has a key that is not text, 1: allowed are names",
        ),
    ],
)
def test_malformed_files(path: Path, text: str, expected: str) -> None:
    assert expected in message(path, text)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.yaml.*: name a readable file"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("arm: l\xf6ra".encode("latin-1"))
    with pytest.raises(InputError, match=r"cannot read .*latin\.yaml.*: save it as UTF-8"):
        load_experiment(tmp_path / "latin.yaml")


# Unknown and misplaced keys.


@pytest.mark.parametrize(
    ("text", "where", "key", "guess"),
    [
        ("arm: lora\nsede: 1\n", 2, "sede", "seed"),
        ("arm: lora\ntrain:\n  lerning_rate: 1\n", 3, "train.lerning_rate", "train.learning_rate"),
        ("arm: lora\nlearning_rate: 1e-4\n", 2, "learning_rate", "train.learning_rate"),
        ("arm: lora\nrank: 4\n", 2, "rank", "lora.r"),
        ("lora:\n  top_k: 4\narm: lora\n", 2, "lora.top_k", "bank.top_k"),
        (
            "arm: lora\ntask:\n  gsm8k:\n    calculator_mark: true\n",
            4,
            "task.gsm8k.calculator_mark",
            "task.gsm8k.calculator_marks",
        ),
        (
            "arm: lora\nheld_out_ratio: 0.3\n",
            2,
            "held_out_ratio",
            "task.gsm_symbolic.held_out_ratio",
        ),
        (
            TWO_STAGES + "    learning_rte: 3\n",
            11,
            "curriculum.end.learning_rte",
            "curriculum.end.learning_rate",
        ),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest_key(
    path: Path, text: str, where: int, key: str, guess: str
) -> None:
    found = message(path, text)
    assert found.startswith(f"run.yaml:{where}: unknown key {key!r}, did you mean {guess!r}?")
    assert "(allowed are " in found


def test_an_unknown_key_like_no_other_names_the_allowed_ones(path: Path) -> None:
    found = message(path, "arm: lora\nlora:\n  zzz: 1\n")
    assert found == (
        "run.yaml:3: unknown key 'lora.zzz': allowed are r, lora_alpha, use_rslora, lora_dropout, "
        "target_modules, layers_to_transform; use one of them"
    )


# Wrong values.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "arm: lora\ntrain:\n  learning_rate: -1\n",
            "run.yaml:3: train.learning_rate is -1, but input should be greater than 0: change it",
        ),
        (
            "arm: lora\ntrain:\n  batch_size: 1.5\n",
            "run.yaml:3: train.batch_size is 1.5, but input should be a valid integer",
        ),
        (
            "arm: lora\ntask:\n  target: word\n",
            "run.yaml:3: task.target is 'word', but input should be 'solution' or 'final': change",
        ),
        (
            "arm: lorax\n",
            f"run.yaml:1: arm is 'lorax', but input should be {ARMS} or",
        ),
        (
            "arm: [lora, lorax]\n",
            f"run.yaml:1: arm.1 is 'lorax', but input should be {ARMS}: ",
        ),
        (
            "arm: lora\nseed:\n  - 1\n  - -2\n",
            "run.yaml:4: seed.1 is -2, but input should be greater than or equal to 0: change it",
        ),
        (
            "arm: lora\nengine:\n  slots: all\n",
            "run.yaml:3: engine.slots is 'all', but input should be a valid integer, unable to "
            "parse string as an integer or input should be 'auto': change it",
        ),
        (
            "arm: lora\nlora:\n  target_modules: q_proj\n",
            "run.yaml:3: lora.target_modules is 'q_proj', but input should be a list: change it",
        ),
        (
            "arm: lora\nmodel: qwen\n",
            "run.yaml:2: model is 'qwen', but it is a section, allowed are its settings name",
        ),
        (
            "arm: lora\ntrain:\n",
            "run.yaml:2: train is None, but it is a section, allowed are its settings num",
        ),
        (
            "arm: lora\nbank:\n  top_k: 50\n",
            "run.yaml:2: bank: top_k is 50, allowed is 1 to num_schemas = 32: lower top_k or",
        ),
        (
            "arm: lora\npreset: pape\n",
            "run.yaml:2: preset is 'pape', allowed are sound, paper: name one of them",
        ),
        ("arm: lora\npreset: [paper]\n", "run.yaml:2: preset is ['paper'], allowed are sound"),
        (
            TWO_STAGES.replace("[lora]", "[lorax]"),
            "run.yaml:9: curriculum.end.train.0 is 'lorax', but input should be 'router',",
        ),
        (
            TWO_STAGES.replace("    ratio: 0.5\n", ""),
            "run.yaml:3: curriculum.start.ratio is missing: add it (Its share of the run's steps.)",
        ),
        (
            TWO_STAGES.replace("0.5", "0.4"),
            "run.yaml: the curriculum's ratios sum to 0.8, allowed is 1: change the stages' ratio",
        ),
    ],
)
def test_a_wrong_value_names_line_value_range_and_mend(
    path: Path, text: str, expected: str
) -> None:
    assert message(path, text).startswith(expected)


# Overrides.


def test_an_override_reaches_a_stage_by_its_name(path: Path) -> None:
    config = load(path, "arm: schemabank\n", "curriculum.joint.learning_rate=3e-4")
    assert config.curriculum[:2] == EQUAL_RATE_STAGES[:2]
    absolute = {"learning_rate": 3e-4, "learning_rate_ratio": None}
    assert config.curriculum[2] == EQUAL_RATE_STAGES[2].model_copy(update=absolute)
    config = load(path, TWO_STAGES, "curriculum.end.learning_rate_ratio=0.1")
    assert [stage.learning_rate for stage in config.runs()[0].stages()] == [1e-3, 1e-4]
    config = load(path, TWO_STAGES, "curriculum.end.train=[lora, schemas]")
    assert config.curriculum[1].train == ("lora", "schemas")
    assert config.curriculum[0].learning_rate == 1e-3


def test_overrides_win_over_the_file_and_later_ones_over_earlier(path: Path) -> None:
    config = load(path, "arm: lora\nseed: 1\n", "seed=2", "seed=[3, 4]", "model.name=a=b")
    assert config.seed == (3, 4)
    assert config.model.name == "a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set 'seed' is not KEY=VALUE: write it like train.learning_rate=1e-4"),
        ("=1", "--set '=1' is not KEY=VALUE: write it like train.learning_rate=1e-4"),
        ("seed=[", "--set 'seed=[': the value is not valid YAML"),
        ("foo.bar=1", "--set: unknown key 'foo': allowed are preset, model"),
        ("train.foo.bar=1", "--set: unknown key 'train.foo': allowed are"),
        ("train.lerning_rate=1", "--set: unknown key 'train.lerning_rate', did you mean"),
        ("learning_rate=1", "--set: unknown key 'learning_rate', did you mean 'train.learn"),
        ("train.seed.x=1", "--set: unknown key 'train.seed', did you mean 'seed'?"),
        ("train.learning_rate.x=1", "--set: train.learning_rate is {'x': 1}, but input should"),
        ("lora.r.x=1", "--set 'lora.r.x=1': lora.r is 4, which has no settings inside: set it as"),
        ("lora.r=0", "--set: lora.r is 0, but input should be greater than or equal to 1: change"),
        ("preset=pape", "--set: preset is 'pape', allowed are sound, paper: name one"),
        (
            "curriculum.last.ratio=1",
            "--set 'curriculum.last.ratio=1': the curriculum has no stage 'last', allowed are "
            "router, schemas, joint: name one of them",
        ),
        ("curriculum.joint.learning_rate=-1", "--set: curriculum.joint.learning_rate is -1, but"),
        (
            "curriculum.joint.x=1",
            "--set: unknown key 'curriculum.joint.x': allowed are name, ratio",
        ),
        (
            "curriculum.joint=1",
            "--set: curriculum.2 is 1, but it is a section, allowed are its settings name",
        ),
        ("tags.num_tags=50", "run.yaml with --set: tags.num_tags is 50, allowed is 1 to"),
    ],
)
def test_wrong_overrides(path: Path, override: str, expected: str) -> None:
    text = "arm: schemabank\nlora:\n  r: 4\ntrain:\n  batch_size: 2\n"
    assert message(path, text, override).startswith(expected)


def test_a_fault_of_the_file_is_not_blamed_on_an_override(path: Path) -> None:
    found = message(path, "arm: lora\ntrain:\n  batch_size: 0\n", "train.max_steps=3")
    assert found.startswith("run.yaml:3: train.batch_size is 0")


def test_overrides_of_a_run() -> None:
    run = RunConfig(arm="schemabank", seed=3)
    changed = overridden(run, ["eval.routing=on", "curriculum.router.warmup_ratio=0"])
    assert (changed.eval.routing, changed.curriculum[0].warmup_ratio) == ("on", 0.0)
    assert changed.seed == 3
    assert overridden(run, []) == run
    with pytest.raises(InputError, match=r"^--set: eval\.routing is 'of', but .*'off', 'on' or"):
        overridden(run, ["eval.routing=of"])


# Ids.


# What a setting cannot change without.
PARTNERS: dict[str, dict[str, object]] = {
    "num_samples": {"temperature": 0.3},
    "learning_rate": {"learning_rate_ratio": None},
}


def candidates(model: Settings, name: str) -> Iterator[object]:
    """Other values that a setting might allow."""
    value = getattr(model, name)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value / 2, value + 0.25)
    for choice in get_args(type(model).model_fields[name].annotation):
        yield from reversed((choice, *get_args(choice)))
    yield from (7, 0.5, "other", (0,), ("lora",), ("wandb",), (0.5,), (0.5, 0.5), (128, 1024), (1,))


def changed(model: Settings, name: str) -> Settings:
    """The same settings with another value that its own checks allow."""
    value, fields = getattr(model, name), model.model_dump()
    fields |= {key: v for key, v in PARTNERS.get(name, {}).items() if key in fields}
    for candidate in candidates(model, name):
        try:
            other = type(model).model_validate({**fields, name: candidate})
        except ValidationError:
            continue
        if getattr(other, name) != value:
            return other
    raise AssertionError(f"no other value for {type(model).__name__}.{name}")


def variants(model: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings with each leaf changed in turn, with the leaf's dotted key."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Settings):
            for key, inner in variants(value, f"{prefix}{name}."):
                yield key, model.model_copy(update={name: inner})
        elif isinstance(value, tuple) and value and isinstance(value[0], Settings):
            for key, inner in variants(value[0], f"{prefix}{name}.0."):
                yield key, model.model_copy(update={name: (inner, *value[1:])})
        else:
            yield prefix + name, changed(model, name)


OTHER_TASKS = [f"task.{name}." for name in TASK_NAMES if name != RunConfig(arm="lora").task.name]
OTHER_METHODS = [
    f"{name}." for name, entry in METHODS.items() if entry.settings and name != "schemabank"
]
NO_IDENTITY = ("engine.", *OTHER_TASKS, *OTHER_METHODS)
VARIANTS = dict(variants(RunConfig(arm="schemabank")))


def test_the_walk_over_the_settings_meets_every_kind_of_leaf() -> None:
    assert {"arm", "preset", "bank.layers", "lora.target_modules", "engine.slots"} <= set(VARIANTS)
    assert {"task.gsm8k.calculator_marks", "curriculum.0.bank_scale"} <= set(VARIANTS)


@pytest.mark.parametrize("key", VARIANTS)
def test_every_setting_but_the_engines_and_other_tasks_changes_the_hash(key: str) -> None:
    same = config_hash(VARIANTS[key]) == config_hash(RunConfig(arm="schemabank"))
    assert same == (key == "preset" or key.startswith(NO_IDENTITY))


@pytest.mark.parametrize(
    ("arm", "hashed"),
    [("base", "e5636db8d2"), ("lora", "502afaa5bf"), ("schemabank", "91deb1a03c")],
)
def test_a_setting_that_comes_later_changes_no_id_of_runs_that_were_made_before(
    arm: str, hashed: str
) -> None:
    """A new setting is marked ``Later`` with the value that was meant before there was one."""
    assert config_hash(RunConfig(arm=arm)) == hashed


def test_no_two_settings_share_a_hash() -> None:
    own = [key for key in VARIANTS if not key.startswith(NO_IDENTITY)]
    assert len({config_hash(VARIANTS[key]) for key in own}) == len(own)


def test_a_tasks_settings_are_part_of_its_own_runs_ids() -> None:
    runs = [
        RunConfig.model_validate(
            {"arm": "lora", "task": {"name": "gsm8k", "gsm8k": {"validation_ratio": ratio}}}
        )
        for ratio in (0.1, 0.2)
    ]
    assert config_hash(runs[0]) != config_hash(runs[1])


def test_equal_settings_have_equal_hashes_however_they_were_written(path: Path) -> None:
    short = load(path, "arm: lora\n").runs()[0]
    long = load(
        path, "seed: 42\nlora:\n  lora_alpha: 16\n  r: 16\ntrain: {learning_rate: 1e-3}\narm: lora"
    ).runs()[0]
    assert short == long
    assert config_hash(short) == config_hash(long) == config_hash(RunConfig(arm="lora"))


def test_a_preset_is_what_it_resolves_to(path: Path) -> None:
    named = load(path, "arm: lora\npreset: paper\n").runs()[0]
    spelled = load(path, yaml.safe_dump({"arm": "lora", **PRESETS["paper"]})).runs()[0]
    assert config_hash(named) == config_hash(spelled)


def test_settings_that_came_later_leave_the_ids_of_earlier_runs_alone() -> None:
    scored = EvalSettings(split="test")  # as every run was by default
    before = TrainSettings(epoch_orders=1)
    assert config_hash(RunConfig(arm="lora", train=before, eval=scored)) == "09192dad33"
    for changed in ({}, {"epoch_orders": 1, "loss_weighting": "token"}):
        train = TrainSettings.model_validate(changed)
        other = RunConfig(arm="lora", train=train, eval=scored)
        assert config_hash(other) != "09192dad33"
    explicit = RunConfig(arm="lora", lora=LoraSettings(layers_to_transform=(0,)))
    assert config_hash(explicit) != config_hash(RunConfig(arm="lora"))


def schemabank(**train: object) -> RunConfig:
    return RunConfig(arm="schemabank", train=TrainSettings.model_validate(train))


def test_a_run_id_tells_a_stages_rate_however_it_was_given() -> None:
    """The same rates give the same id, and a rate that no stage has gives no other one."""
    absolute = tuple(stage.resolved(TrainSettings()) for stage in EQUAL_RATE_STAGES)
    stated = schemabank().model_copy(update={"curriculum": absolute})
    assert config_hash(stated) == config_hash(schemabank())
    for name, value in (
        ("learning_rate", 2e-3),
        ("lr_scheduler_type", "cosine"),
        ("warmup_ratio", 0.1),
    ):
        changed = schemabank(**{name: value})
        assert config_hash(changed) != config_hash(schemabank())
        unmoved = changed.model_copy(update={"curriculum": absolute})
        assert config_hash(unmoved) == config_hash(stated)


def test_a_stage_of_the_preset_that_an_override_names_is_changed(path: Path) -> None:
    """In whatever order preset and stage are given; the other stages stay the preset's."""
    for overrides in (
        ["preset=paper", "curriculum.joint.learning_rate=1e-5"],
        ["curriculum.joint.learning_rate=1e-5", "preset=paper"],
    ):
        (run,) = load(path, "arm: schemabank\n", *overrides).runs()
        assert [stage.learning_rate for stage in run.stages()] == [1e-3, 1e-4, 1e-5]
    assert [s["learning_rate"] for s in PRESETS["paper"]["curriculum"]] == [1e-3, 1e-4, 5e-5]


def test_a_run_id_is_arm_seed_and_hash() -> None:
    run = RunConfig(arm="schemabank", seed=5)
    assert re.fullmatch(r"[0-9a-f]{10}", config_hash(run))
    assert run_id(run) == f"schemabank-seed5-{config_hash(run)}"


@pytest.mark.parametrize("key", VARIANTS)
def test_a_resolved_run_reads_back(key: str, path: Path) -> None:
    run = VARIANTS[key]
    path.write_text(to_yaml(run), encoding="utf-8")
    if key == "curriculum.0.ratio":
        with pytest.raises(InputError, match="ratios sum to"):
            load_run(path)
        return
    again = load_run(path)
    assert config_hash(again) == config_hash(run)
    assert (again == run) == (not key.startswith(tuple(OTHER_METHODS)))


def test_a_changed_resolved_run_is_checked(path: Path) -> None:
    text = to_yaml(RunConfig(arm="lora")).replace("r: 16", "r: 0", 1)
    path.write_text(text, encoding="utf-8")
    line = 1 + text.splitlines().index("  r: 0")
    with pytest.raises(InputError, match=rf"run\.yaml:{line}: lora\.r is 0"):
        load_run(path)


def test_settings_that_an_arm_does_not_use_are_no_part_of_its_id() -> None:
    def ids(**changes: object) -> dict[str, str]:
        tree = {"arm": ["base", "lora", "schemabank"], **changes}
        return {run.arm: run_id(run) for run in ExperimentConfig.model_validate(tree).runs()}

    plain = ids()
    assert {a for a, i in ids(bank={"rank": 3}).items() if i != plain[a]} == {"schemabank"}
    changed = ids(train={"num_train_epochs": 3})
    assert {a for a, i in changed.items() if i != plain[a]} == {"lora", "schemabank"}
    assert all(i != plain[a] for a, i in ids(model={"name": "other"}).items())


def test_the_base_model_can_be_scored_with_several_numbers_of_shots() -> None:
    config = ExperimentConfig(arm=("base", "lora"), seed=(1, 2), base_shots=(0, 8))
    runs = [(run.arm, run.seed, run.evaluation().few_shot) for run in config.runs()]
    assert runs == [("base", 1, 0), ("base", 1, 8), ("lora", 1, 0), ("lora", 2, 0)]


def test_a_pair_that_lacks_a_value_is_named(tmp_path: Path) -> None:
    stage = {"name": "a", "ratio": 1.0, "train": ["lora"], "learning_rate": 1e-3, "bank_scale": [1]}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"arm": "schemabank", "curriculum": [stage]}))
    with pytest.raises(InputError, match=r"run\.yaml:\d+: curriculum\.a\.bank_scale"):
        load_experiment(path)


@pytest.mark.parametrize("key", ["seed", "train", "lora", "lora.target_modules", "arm", "unheard"])
def test_a_sentence_about_a_long_value_is_short(key: str, tmp_path: Path) -> None:
    path, (name, _, inner) = tmp_path / "run.yaml", key.partition(".")
    value = f"{{{inner}: {'9' * 5000}x}}" if inner else f"{'9' * 5000}x"
    path.write_text(f"{name}: {value}\n")
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    assert len(str(caught.value)) < 2000
