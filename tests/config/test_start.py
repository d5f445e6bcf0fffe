import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import InputError
from schemabank.config.datacolumns import PAIRS
from schemabank.config.file import load_experiment
from schemabank.config.settings import ExperimentConfig
from schemabank.config.start import DATA_PATHS, SCHEMA, SHOWN, Start, starting_yaml
from schemabank.config.task import TASK_NAMES

NAMES = st.text(min_size=1).filter(lambda text: bool(text.strip()) and "/" not in text)


def read(tmp_path: Path, start: Start) -> ExperimentConfig:
    path = tmp_path / "config.yaml"
    path.write_text(starting_yaml(start), encoding="utf-8")
    return load_experiment(path)


def refusal(start: Start) -> str:
    with pytest.raises(InputError) as refused:
        starting_yaml(start)
    return str(refused.value)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_what_is_written_for_a_task_reads_back(task: str, tmp_path: Path) -> None:
    data = "my.jsonl" if task == "records" else None
    start = Start(task=task, data=data, columns=("question", "answer"))
    text, config = starting_yaml(start), read(tmp_path, start)
    assert config.task.name == task
    assert config.model.name == "smollm2-135m-instruct"
    assert [run.arm for run in config.runs()] == ["base", "lora"]
    assert "\n\n\n" not in text
    assert max(map(len, text.splitlines())) <= 110


def test_every_setting_stands_below_what_it_means() -> None:
    text = starting_yaml(Start(), file="my.yaml")
    lines = text.splitlines()
    assert lines[0] == f"# yaml-language-server: $schema={SCHEMA}"
    assert lines[1] == "# Train and evaluate it: schemabank train my.yaml"
    for name in SHOWN:
        at = next(
            i for i, line in enumerate(lines) if line.strip().startswith(f"{name.split('.')[-1]}: ")
        )
        assert lines[at - 1].strip().startswith("# ")
    assert "  # Allowed: linear, cosine, constant.\n  lr_scheduler_type: linear" in text
    assert "# Allowed: base, lora, schemabank, " in text


def test_only_what_a_task_needs_differs_from_the_defaults(tmp_path: Path) -> None:
    """A file for gsm8k makes the runs that a few lines would make."""
    short = tmp_path / "short.yaml"
    short.write_text("task: {name: gsm8k}\neval: {limit: 200}\ntrain: {learning_rate: 2e-3}\n")
    assert read(tmp_path, Start(task="gsm8k")).runs() == load_experiment(short).runs()


@pytest.mark.parametrize("pair", PAIRS)
def test_columns_that_are_known_fill_the_templates(pair: tuple[str, str], tmp_path: Path) -> None:
    start = Start(data="a/my data.jsonl", columns=("id", *pair))
    assert f"# Columns of my data.jsonl: id, {pair[0]}, {pair[1]}\n" in starting_yaml(start)
    task = read(tmp_path, start).task
    assert (task.name, task.records.path) == ("records", "a/my data.jsonl")
    assert task.prompt is not None
    assert task.prompt.startswith(f"{{{pair[0]}}}")
    assert task.records.target == f"{{{pair[1]}}}"


def test_templates_of_the_user_need_no_known_columns(tmp_path: Path) -> None:
    start = Start(data="my.jsonl", columns=("a", "b"))
    said = refusal(start)
    assert "--data 'my.jsonl' has the columns a, b, none of which are known" in said
    assert "--prompt 'Q: {question}' and --target '{answer}'" in said
    task = read(tmp_path, replace(start, prompt="Q: {a}\n# ", target="'{b}'")).task
    assert (task.prompt, task.records.target) == ("Q: {a}\n# ", "'{b}'")


@pytest.mark.parametrize("messages", ["messages", ("prompt", "completion")])
def test_a_chat_has_no_templates(messages: str | tuple[str, str], tmp_path: Path) -> None:
    start = Start(data="my.jsonl", columns=("x",), messages=messages)
    text = starting_yaml(start)
    assert "prompt: " not in text
    assert "target: " not in text
    assert read(tmp_path, start).task.records.messages == messages


def test_free_text_is_told_of_other_metrics_than_exact_match(tmp_path: Path) -> None:
    said = "# The task's own, exact_match, scores free text near 0: take f1 or rouge_l for it."
    start = Start(data="my.jsonl", columns=("x",), messages="messages")
    assert f"  {said}\n  metric: null" in starting_yaml(start)
    assert read(tmp_path, start).task.metric is None
    assert said not in starting_yaml(Start(task="gsm8k"))


def test_data_on_the_hub_get_templates_to_be_changed(tmp_path: Path) -> None:
    start = Start(data="openai/gsm8k")
    note = (
        "# openai/gsm8k is taken for a data set on the hub: put its columns into the templates.\n"
    )
    assert note in starting_yaml(start)
    assert read(tmp_path, start).task.records.path == "openai/gsm8k"


def test_books_of_the_user(tmp_path: Path) -> None:
    task = read(tmp_path, Start(task="perplexity", data="my books")).task
    assert (task.name, task.perplexity.path) == ("perplexity", "my books")
    assert set(DATA_PATHS) == {"records", "perplexity"}


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (Start(task="recrds"), "--task 'recrds': allowed are gsm8k, .*did you mean 'records'"),
        (Start(task="records"), "no data are named: name a file with --data"),
        (Start(task="gsm8k", data="x"), "--data 'x': the task gsm8k has data of its own, allowed"),
        (
            Start(target="{x}"),
            "--target '{x}': allowed with the task records, but the task is cond",
        ),
        (Start(model=" "), "--model is empty, allowed is a text"),
    ],
)
def test_what_cannot_be_is_refused(start: Start, sentence: str) -> None:
    assert re.search(sentence, refusal(start))


@examples(50)
@given(text=NAMES, name=NAMES)
def test_any_text_is_written_so_that_it_reads_back(text: str, name: str) -> None:
    start = Start(data=f"a/{name}", prompt=text, target=text, model=name)
    tree = yaml.safe_load(starting_yaml(start, file=name))
    assert tree["task"]["prompt"] == tree["task"]["records"]["target"] == text
    assert tree["task"]["records"]["path"] == f"a/{name}"
    assert tree["model"]["name"] == name
