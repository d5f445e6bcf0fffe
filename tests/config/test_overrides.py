import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment, overridden
from schemabank.config.overrides import NULLS, QUOTES, parse_override
from schemabank.config.places import is_text, setting_names
from schemabank.config.settings import ExperimentConfig, RunConfig

TEXTS = [name for name in setting_names(ExperimentConfig) if is_text(name.split("."))]
# JSON writes all others as two escapes, which YAML reads as two characters.
PLAIN = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])
Load = Callable[..., ExperimentConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    path = tmp_path / "run.yaml"
    path.write_text("arm: schemabank\n", encoding="utf-8")
    return lambda *overrides: load_experiment(path, overrides)


def refused(load: Load, override: str) -> str:
    with pytest.raises(InputError) as refusal:
        load(override)
    return str(refusal.value)


def test_the_settings_that_are_texts_are_known() -> None:
    texts = {"model.name", "model.revision", "task.prompt", "task.records.path", "tags.field"}
    assert texts <= set(TEXTS)
    assert is_text(["curriculum", "joint", "name"])
    others = ("arm", "seed", "train.learning_rate", "lora.target_modules", "task.name", "lora")
    others += ("task.stop", "engine.slots", "curriculum", "nothing", "train.nothing.more")
    assert not any(is_text(name.split(".")) for name in others)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Q: {question}",
            "{question}",
            "{question}: ",
            "[a, b]",
            "#x",
            "yes",
            "true",
            "1e-3",
            "7",
        ),
        *(
            "a #b",
            "- a",
            "* a",
            "&a",
            "!x",
            "%",
            "@",
            "`a`",
            "a: b: c",
            "{a",
            "\u00fc",
            "a=b",
            "none",
        ),
        *(
            " Q",
            "Q ",
            "Question: {question}\nAnswer: ",
            '"a" or "b"',
            "'",
            '"',
            "it's",
            "2024-01-01",
        ),
    ],
)
def test_a_text_is_taken_as_it_stands(text: str, load: Load) -> None:
    assert load(f"task.prompt={text}").task.prompt == text


@examples(50)
@given(name=st.sampled_from(TEXTS), text=st.text(PLAIN, min_size=1))
def test_any_text_is_taken_as_it_stands_or_in_quotes(name: str, text: str) -> None:
    key, read = parse_override(f"{name}={json.dumps(text)}")
    assert (key, read) == (name.split("."), text)
    bare = text.strip()
    if bare and bare not in NULLS and bare[0] not in QUOTES:
        assert parse_override(f"{name}={text}") == (key, text)


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ('"Q: {question}\\nA: "', "Q: {question}\nA: "),
        ("'null'", "null"),
        (" 'it''s' ", "it's"),
        ('""', ""),
        ("null", None),
        (" ~ ", None),
    ],
)
def test_quotes_around_a_whole_text_and_null_are_those_of_yaml(
    value: str, prompt: str | None, load: Load
) -> None:
    assert load(f"task.prompt={value}").task.prompt == prompt


def test_the_blank_behind_a_sign_with_blanks_belongs_to_the_sign(load: Load) -> None:
    assert load("task.prompt = Q: ").task.prompt == "Q: "
    assert load("task.prompt =  Q").task.prompt == " Q"
    assert load("train.batch_size = 3 ").train.batch_size == 3


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-3", 1e-3),
        ("train.learning_rate= 1e-3 ", 1e-3),
        ("train.learning_rate=.5", 0.5),
        ("train.batch_size=1_000", 1000),
        ("train.max_steps=null", None),
        ("train.max_steps=7 # days", 7),
        ("task.chat_template=no", False),
        ("bank.residual=yes", True),
        ("bank.residual=True", True),
        ("lora.target_modules=[q_proj, v_proj]", ("q_proj", "v_proj")),
        ("lora.target_modules=all-linear", ("all-linear",)),
        ("task.stop=['Q: ', '#', yes]", ("Q: ", "#", "yes")),
        ("task.stop=[]", ()),
        ("eval.routing=off", "off"),
        ("tags.tagger=none", "none"),
        ("task.metric=~", None),
        ("curriculum.joint.name=a: b", "a: b"),
    ],
)
def test_other_settings_take_what_their_types_say(override: str, value: object, load: Load) -> None:
    config = load(override)
    if override.startswith("curriculum"):
        assert config.curriculum[2].name == value
        return
    section, _, name = override.partition("=")[0].partition(".")
    assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "task.prompt=",
            "--set 'task.prompt=': the value is empty, allowed is a value: write null",
        ),
        (
            "train.max_steps=  ",
            "--set 'train.max_steps=  ': the value is empty, allowed is a value",
        ),
        (
            "task.stop=",
            "the value is empty, allowed is a value: write null for none, [] for an empty",
        ),
        (
            "train.max_steps=#7",
            "--set 'train.max_steps=#7': the value is a comment of YAML, allowed",
        ),
        ("train.max_steps=1e3", "--set: train.max_steps is '1e3', but input should be a valid int"),
        (
            "train.max_steps=true",
            "--set: train.max_steps: True holds a truth value, allowed is none",
        ),
        ("train.learning_rate=a: b", "--set: train.learning_rate is {'a': 'b'}, but input should"),
        ("train.learning_rate={x}", "--set: train.learning_rate is {'x': None}, but input should"),
        (
            "train.learning_rate=[",
            "--set 'train.learning_rate=[': the value is not valid YAML (",
        ),
        (
            "bank.residual=maybe",
            "--set: bank.residual is 'maybe', but input should be a valid bool",
        ),
        ("model.name=null", "--set: model.name is None, but input should be a valid string"),
        ("lora.target_modules=q_proj", "change it there, such as [q_proj]"),
        ("lora.target_modules=q_proj, v_proj", "change it there, such as [q_proj, v_proj]"),
        (
            "task.stop=[1]",
            "task.stop.0 is 1, but input should be a valid string: change it there, a",
        ),
        ("engine.trackers=wandb", "change it there, such as [wandb]"),
        (r"task.stop=\n", r'change it there, such as ["\n"]'),
        ("seed=1,2,3", "change it there, such as [1, 2, 3]"),
        ("arm=lora,base", "change it there, such as [lora, base]"),
        ("model=a/b", "model is 'a/b', but it is a section, allowed are its settings name,"),
        (
            "train.save_strategy=5",
            "unknown key 'train.save_strategy': a run is evaluated and saved",
        ),
        ("x[0]=1", "unknown key 'x[0]': allowed are preset,"),
        ("train.int=1", "unknown key 'train.int': allowed are num"),
        ("TRAIN.learning_rate=1", "unknown key 'TRAIN', did you mean 'train'?"),
    ],
)
def test_what_no_value_of_the_type_is_is_refused(override: str, sentence: str, load: Load) -> None:
    assert sentence in refused(load, override)


def test_overrides_of_a_run_are_read_alike() -> None:
    run = overridden(RunConfig(arm="lora"), ["task.prompt=Q: {question}", "model.revision=12"])
    assert (run.task.prompt, run.model.revision) == ("Q: {question}", "12")
