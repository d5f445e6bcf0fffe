"""Reading a YAML configuration: presets, overrides, and errors that point at a line.

A file states only differences from its preset and from a file that it extends. Every error names
the key, its line, what is allowed and what to do. Nothing is computed before the whole file is
valid.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel

from schemabank.common.errors import InputError
from schemabank.common.plainyaml import Location
from schemabank.config.base import Later
from schemabank.config.methods import METHODS
from schemabank.config.overrides import Tree, apply_override
from schemabank.config.presets import PRESETS
from schemabank.config.settings import ExperimentConfig, RunConfig
from schemabank.config.settingsfile import SettingsFile, merge, validated
from schemabank.config.task import TASK_NAMES
from schemabank.config.train import INHERITED

NOT_IDENTITY = {"engine", "preset"}


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a configuration file.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings that override the file's, as ``--set`` takes them.

    Raises:
        InputError: the file is missing or malformed, or a setting is unknown or out of range.
    """
    source = SettingsFile(path, may_extend=True)
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
    later = _later(type(settings))
    for name, value in settings:
        if name in later and value in later[name]:
            tree.pop(name, None)
        elif isinstance(value, BaseModel) and name in tree:
            _forget_later(tree[name], value)


@cache
def _later(kind: type[BaseModel]) -> Mapping[str, Sequence[object]]:
    """By the fields of a section that came later, the values that held before they existed."""
    found = {
        name: [mark.before for mark in field.metadata if isinstance(mark, Later)]
        for name, field in kind.model_fields.items()
    }
    return {name: before for name, before in found.items() if before}


def run_id(run: RunConfig) -> str:
    """Return the run's folder name: arm, seed and configuration hash."""
    return f"{run.arm}-seed{run.seed}-{config_hash(run)}"


def to_yaml(run: RunConfig) -> str:
    """Return the resolved configuration as YAML, which :func:`load_run` reads back.

    Sections of other methods are left out: it can be read where their packages are missing.
    """
    others = {name for name, method in METHODS.items() if method.settings} & run.unused_sections
    tree = run.model_dump(mode="json", exclude=others)
    return "".join(_yaml_of(json.dumps({name: value})) for name, value in tree.items())


@lru_cache(maxsize=1024)
def _yaml_of(section: str) -> str:
    """Write a section that is given as JSON.

    To write YAML takes long, and the runs of a cohort, which are written and compared by the
    hundred, have most of their sections in common.
    """
    return yaml.safe_dump(json.loads(section), sort_keys=False, allow_unicode=True)
