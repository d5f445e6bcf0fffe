"""Reading a YAML configuration: presets, overrides, and errors that point at a line.

A file states only differences from its preset. Every error names the key, its line, what is allowed
and what to do. Nothing is computed before the whole file is valid.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from schemabank.common.errors import InputError
from schemabank.common.files import read_text
from schemabank.common.plainyaml import Location, parse_yaml
from schemabank.config.base import Later
from schemabank.config.methods import METHODS
from schemabank.config.overrides import Tree, apply_override
from schemabank.config.presets import PRESETS
from schemabank.config.problems import dotted_key, in_words
from schemabank.config.settings import ExperimentConfig, RunConfig
from schemabank.config.task import TASK_NAMES
from schemabank.config.train import INHERITED

Model = TypeVar("Model", bound=BaseModel)

NOT_IDENTITY = {"engine", "preset"}


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a configuration file.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings that override the file's, as ``--set`` takes them.

    Raises:
        InputError: the file is missing or malformed, or a setting is unknown or out of range.
    """
    source = SettingsFile(path)
    tree = source.tree
    # The preset first: it decides which stages a setting inside the curriculum changes.
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "preset"):
        source.overridden.add(apply_override(tree, override))
    return source.validate(with_preset(tree, source.at), ExperimentConfig)


def with_preset(tree: Tree, at: Callable[[Location], str]) -> Tree:
    """Put settings on top of those of the preset that they name; ``at`` tells where they stand."""
    preset = tree.get("preset", "sound")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(
            f"{at(('preset',))}: preset is {preset!r}, allowed are {', '.join(PRESETS)}: "
            "name one of them"
        )
    return merge(PRESETS[preset], tree)


def load_run(path: Path) -> RunConfig:
    """Read the resolved ``config.yaml`` of a run."""
    source = SettingsFile(path)
    return source.validate(source.tree, RunConfig)


def overridden(run: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """Return a run with ``a.b=value`` settings changed.

    Raises:
        InputError: a setting is unknown or out of range.
    """
    tree = run.model_dump(mode="json")
    for override in overrides:
        apply_override(tree, override)
    return validated(tree, RunConfig, lambda _: "--set")


def config_hash(run: RunConfig) -> str:
    """Return 10 hex digits of the settings that can change a run's result."""
    tree = run.model_dump(mode="json", exclude=NOT_IDENTITY | run.unused_sections)
    if run.uses("curriculum"):
        ratio = {"learning_rate_ratio"}
        tree["curriculum"] = [s.model_dump(mode="json", exclude=ratio) for s in run.stages()]
        for name in INHERITED:
            del tree["train"][name]
    _forget_later(tree, run)
    for other in TASK_NAMES:
        if other != run.task.name:
            del tree["task"][other]
    if run.task.name == "records" and run.task.records.digest is not None:
        del tree["task"]["records"]["path"]  # the rows count, not where they lie
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:10]


def _forget_later(tree: Tree, settings: BaseModel) -> None:
    """Remove settings from a tree that have the value which held before they existed."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if any(isinstance(mark, Later) and mark.before == value for mark in field.metadata):
            tree.pop(name, None)
        elif isinstance(value, BaseModel) and name in tree:
            _forget_later(tree[name], value)


def run_id(run: RunConfig) -> str:
    """Return the run's folder name: arm, seed and configuration hash."""
    return f"{run.arm}-seed{run.seed}-{config_hash(run)}"


def to_yaml(run: RunConfig) -> str:
    """Return the resolved configuration as YAML, which :func:`load_run` reads back.

    Sections of other methods are left out: it can be read where their packages are missing.
    """
    others = {name for name, method in METHODS.items() if method.settings} & run.unused_sections
    tree = run.model_dump(mode="json", exclude=others)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class SettingsFile:
    """A YAML file with the line of every key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.overridden: set[Location] = set()
        found, lines = parse_yaml(read_text(path), str(path))
        if not isinstance(found or {}, dict):
            raise InputError(
                f"{path} holds a {type(found).__name__}, allowed are keys and values: write "
                "settings like 'arm: lora'"
            )
        self.tree: Tree = cast(Tree, found or {})
        self.lines: dict[Location, int] = {}
        for location, line in lines:
            if location in self.lines:
                raise InputError(
                    f"{path}:{line}: {dotted_key(location)} is already in line "
                    f"{self.lines[location]}, allowed is once: remove one of them"
                )
            self.lines[location] = line

    def at(self, location: Location) -> str:
        """Where a setting was made: file and line, or the command line."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.overridden:
                return "--set"
            if location[:end] in self.lines:
                return f"{self.path}:{self.lines[location[:end]]}"
            if any(made[:end] == location[:end] for made in self.overridden):
                return "--set"
        return f"{self.path} with --set" if self.overridden else str(self.path)

    def validate(self, tree: Tree, model: type[Model]) -> Model:
        """Make settings of a tree that the file gave.

        Raises:
            InputError: the first problem, as one sentence.
        """
        return validated(tree, model, self.at)


def validated(tree: Tree, model: type[Model], at: Callable[[Location], str]) -> Model:
    """Make settings of a tree; ``at`` says where each was made."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise InputError(in_words(error, model, at)) from error


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Put settings on top of others, sections into sections."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged
