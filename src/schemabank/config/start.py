"""A first configuration: the settings that are changed most, each under what it means.

It is text with comments, so it is written line by line; what it says is read back before it is
given out. Comments are the settings' own descriptions.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args, get_origin

import yaml
from pydantic import BaseModel

from schemabank.common.errors import InputError, did_you_mean, printable
from schemabank.common.plainyaml import parse_yaml
from schemabank.config.datacolumns import (
    PAIRS,
    known_pair,
    may_be_answered,
    other_training,
    prompt_of,
)
from schemabank.config.places import settings_at
from schemabank.config.settings import ExperimentConfig
from schemabank.config.settingsfile import validated
from schemabank.config.task import TASK_NAMES

SCHEMA = "schemabank.schema.json"  # beside the configuration
# Without data: a task that makes its examples itself, with no package of an extra.
RECORDS, DEFAULT_TASK = "records", "conditional"
# Where a task finds data that are the user's own.
DATA_PATHS: Mapping[str, str] = {
    RECORDS: "task.records.path",
    "perplexity": "task.perplexity.path",
}
# What is shown of every task, in this order, with the default unless a task has a value of its own.
SHOWN = (
    *("arm", "seed", "model.name", "task.name", "task.prompt", "task.metric", "task.max_length"),
    *("lora.r", "lora.lora_alpha", "lora.lora_dropout", "lora.target_modules"),
    *("train.num_train_epochs", "train.batch_size", "train.learning_rate"),
    *("train.lr_scheduler_type", "train.warmup_ratio"),
    *("eval.split", "eval.limit", "eval.max_new_tokens"),
)
# Small enough to end in minutes on two CPU cores where the task makes its own examples.
MINUTES = {"train.num_train_epochs": 1, "eval.limit": 100, "eval.max_new_tokens": 128}
OWN: Mapping[str, Mapping[str, object]] = {
    "gsm_symbolic": {
        "task.gsm_symbolic.train_size": 600,
        "task.gsm_symbolic.validation_size": 100,
        "task.gsm_symbolic.max_question_words": 30,
        **MINUTES,
    },
    "conditional": {
        "task.conditional.train_size": 600,
        "task.conditional.validation_size": 100,
        **MINUTES,
    },
    "gsm8k": {"eval.limit": 200},
    "humaneval": {"task.humaneval.run_untrusted_code": False, "eval.max_new_tokens": 384},
    "narrativeqa": {"task.max_length": 2048, "eval.limit": 200, "eval.max_new_tokens": 64},
    "perplexity": {"task.perplexity.path": None, "eval.limit": 20},
    RECORDS: {"task.records.path": "", "task.records.target": "{answer}"},
}
# Learning rates of plain LoRA that do well in docs/findings.md, where others than the default do.
# Of two that do, the lower: at twice the higher one training breaks down.
RATES: Mapping[object, float] = {"smollm2-135m-instruct": 2e-3, "gemma-3-270m": 1e-3}
# What is not shown of a task, since it changes nothing there.
UNUSED = {"perplexity": {"eval.max_new_tokens"}}
OF_TEMPLATES = {"task.prompt", "task.records.target"}  # a chat has none
# What is added to a setting's own comment, by task.
COMMENTS: Mapping[str, Mapping[str, str]] = {
    RECORDS: {
        "task.metric": (
            "The task's own, exact_match, scores free text near 0: take f1 or rouge_l for it."
        )
    }
}


@dataclass(frozen=True)
class Start:
    """What a first configuration is for.

    Attributes:
        task: name of a task; ``None``: records if there are data, else a generated one.
        data: the user's own data; a file, a folder or a hub data set's id.
        model: name of the base model; ``None`` for the embedded one.
        prompt: template of the prompt; ``None``: made of the data's columns.
        target: template of the target, likewise.
        columns: names of the data's columns; ``None`` where they are not here.
        textless: columns with a list, an object or a truth value, which no template takes.
        messages: column with a chat, or two; ``None`` where the data hold none.
    """

    task: str | None = None
    data: str | None = None
    model: str | None = None
    prompt: str | None = None
    target: str | None = None
    columns: tuple[str, ...] | None = None
    textless: tuple[str, ...] = ()
    messages: str | tuple[str, str] | None = None


def starting_yaml(start: Start, *, file: str = "config.yaml") -> str:
    """Return a configuration with comments, which reads back as it stands.

    Args:
        start: what it is for.
        file: the name that it will have, for its first lines.

    Raises:
        InputError: there is no such task, its data are not named or cannot be read, or a value is
            no such setting's.
    """
    task = _task(start)
    values, note = _values(task, start)
    head = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# Train and evaluate it: {shlex.join(['schemabank', 'train', file])}",
        f"# Editors check it by {SCHEMA}, which schemabank config-schema prints.",
        "# All other settings keep their defaults.",
        *note,
    ]
    # No comment holds the end of a line, which a file's or a column's name may have in it.
    lines = [*map(printable, head), *_lines(values, (), COMMENTS.get(task, {}))]
    text = "\n".join(lines) + "\n"
    starting_config(text)
    return text


def starting_config(text: str) -> ExperimentConfig:
    """Return the settings that such a configuration makes.

    Raises:
        InputError: one of them has a value that is not its own.
    """
    tree, _ = parse_yaml(text, "the configuration")
    return validated(cast(dict[str, Any], tree), ExperimentConfig, lambda _: "schemabank init")


def _task(start: Start) -> str:
    for name in ("task", "data", "model", "prompt", "target"):
        value = getattr(start, name)
        if value is not None and not value.strip():
            raise InputError(f"--{name} is empty, allowed is a text: name it or leave it out")
    task = start.task or (RECORDS if start.data else DEFAULT_TASK)
    if task not in TASK_NAMES:
        guess = did_you_mean(task, TASK_NAMES)
        raise InputError(
            f"--task {task!r}: allowed are {', '.join(TASK_NAMES)}{guess}: name one of them"
        )
    if start.data and task not in DATA_PATHS:
        raise InputError(
            f"--data {start.data!r}: the task {task} has data of its own, allowed are data for "
            f"{' and '.join(DATA_PATHS)}: leave --data or --task out"
        )
    if task == RECORDS and not start.data:
        raise InputError("--task records: no data are named: name a file with --data")
    if start.target is not None and task != RECORDS:
        raise InputError(
            f"--target {start.target!r}: allowed with the task {RECORDS}, but the task is {task}: "
            "leave it out"
        )
    return task


def _values(task: str, start: Start) -> tuple[dict[str, Any], list[str]]:
    """The settings that are written, as a tree, and comments on what was found in the data."""
    given: dict[str, object] = {"task.name": task}
    note: list[str] = []
    if start.model is not None:
        given["model.name"] = start.model
    if (model := start.model or _default("model.name")) in RATES:
        given["train.learning_rate"] = RATES[model]
    if start.data:
        given[DATA_PATHS[task]] = start.data
    asked = {"task.prompt": start.prompt, "task.records.target": start.target}
    templates = {name: text for name, text in asked.items() if text is not None}
    own, unused = OWN[task], UNUSED.get(task, set())
    if start.messages is not None:
        given["task.records.messages"] = start.messages
        own, unused = {**own, "task.records.messages": None}, OF_TEMPLATES
    elif task == RECORDS and len(templates) < len(asked):
        found, note = _templates(start)
        templates = found | templates
    names = [name for name in dict.fromkeys((*SHOWN, *own)) if name not in unused]
    values = {name: own.get(name, _default(name)) for name in names}
    return _nested(values | given | templates), note


def _nested(values: Mapping[str, object]) -> dict[str, Any]:
    """Values by dotted names as a tree of sections."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def _templates(start: Start) -> tuple[dict[str, str], list[str]]:
    """Templates of prompt and target for the user's rows, and a comment on their columns."""
    data, columns = str(start.data), start.columns
    if columns is None:
        pair = PAIRS[1]
        note = [f"# {data} is taken for a data set on the hub: put its columns into the templates."]
    else:
        note = [f"# Columns of {Path(data).name}: {', '.join(columns)}"]
        pair = known_pair(columns) or _no_pair(start, columns)
    asked, answered = pair
    prompt = prompt_of(asked, [name for name in columns or () if name not in start.textless])
    return {"task.prompt": prompt, "task.records.target": f"{{{answered}}}"}, note


def _no_pair(start: Start, columns: Sequence[str]) -> NoReturn:
    found = f"--data {start.data!r} has the columns {', '.join(columns)}"
    templates = "name templates, such as --prompt 'Q: {question}' and --target '{answer}'"
    other = other_training(columns)
    if other is None:
        raise InputError(
            f"{found}, none of which are known for a prompt and its answer: {templates}"
        )
    with_text = set(columns) - set(start.textless)
    if {"prompt", "chosen", "rejected"} <= with_text:
        other += " (--prompt '{prompt}' --target '{chosen}')"
    elif may_be_answered(with_text):
        other += f"; or, if one column answers another, {templates}"
    raise InputError(f"{found}: {other}")


def _lines(tree: Mapping[str, Any], above: Sequence[str], more: Mapping[str, str]) -> Iterator[str]:
    """The tree as YAML, each setting under a comment that says what it is, and more of some."""
    model = settings_at(ExperimentConfig, tuple(above))
    indent = "  " * len(above)
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from () if above else ("",)
            yield f"{indent}{name}:"
            yield from _lines(value, (*above, name), more)
        else:
            own = more.get(".".join((*above, name)))
            comments = (*_comments(model, name), *([] if own is None else [own]))
            yield from (f"{indent}# {line}" for line in comments)
            yield f"{indent}{name}: {_scalar(value)}"


def _comments(model: type[BaseModel], name: str) -> Iterator[str]:
    field = model.model_fields[name]
    yield str(field.description)
    if choices := _choices(field.annotation):
        yield f"Allowed: {', '.join(choices)}."


def _choices(annotation: object) -> list[str]:
    """The words that a setting takes, or nothing where it takes others too."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    found = [_choices(kind) for kind in get_args(annotation) if kind is not type(None)]
    return next((words for words in found if words), [])


def _scalar(value: object) -> str:
    """A value on one line, a text in quotes unless it is a plain word."""
    is_plain = not isinstance(value, str) or re.fullmatch(r"[A-Za-z][\w./-]*", value) is not None
    text = yaml.safe_dump(
        list(value) if isinstance(value, tuple) else value,
        width=2**31,
        allow_unicode=True,
        default_flow_style=True,
        default_style=None if is_plain else '"',
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _default(name: str) -> object:
    *sections, last = name.split(".")
    return settings_at(ExperimentConfig, tuple(sections)).model_fields[last].default
