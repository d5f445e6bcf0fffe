"""Reading a YAML configuration: presets, overrides, and errors that point at a line.

A file states only differences from its preset. Every error names the key, its line, what is allowed
and what to do. Nothing is computed before the whole file is valid.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemabank.common.errors import InputError
from schemabank.common.files import read_text
from schemabank.common.plainyaml import Location, parse_yaml
from schemabank.config.base import Later
from schemabank.config.methods import METHODS
from schemabank.config.presets import PRESETS
from schemabank.config.settings import ExperimentConfig, RunConfig
from schemabank.config.task import TASK_NAMES
from schemabank.config.train import EQUAL_RATE_STAGES, INHERITED

Tree = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)

NOT_IDENTITY = {"engine", "preset"}
# A stage has one of these. Setting one of them removes the other.
EITHER_OR = {"learning_rate": "learning_rate_ratio", "learning_rate_ratio": "learning_rate"}


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a configuration file.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings that override the file's; the value is read as YAML.

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
                    f"{path}:{line}: {_dotted_key(location)} is already in line "
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
        raise InputError(_in_words(error, model, at)) from error


def _in_words(error: ValidationError, model: type[BaseModel], at: Callable[[Location], str]) -> str:
    """The first problem, as one sentence."""
    located = [(_location_of(problem), problem) for problem in error.errors()]
    first = located[0][0]
    # Every branch of a union has its problem; the one deepest inside the value says the most.
    location = max((loc for loc, _ in located if loc[: len(first)] == first), key=len)
    problem, *others = [problem for loc, problem in located if loc == location]
    key, where = _dotted_key(location), at(location)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_nearest_key(model, location)}"
    if problem["type"] == "missing" and isinstance(location[-1], str):
        field = _settings_at(model, location[:-1]).model_fields[str(location[-1])]
        return f"{where}: {key} is missing: add it ({field.description})"
    if problem["type"] == "value_error":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {key + ': ' if key else ''}{reason}"
    reasons = dict.fromkeys(_reason_in_words(p["msg"]) for p in (problem, *others))
    value = problem["input"]
    return f"{where}: {key} is {value!r:.200}, but {' or '.join(reasons)}: change it there"


def apply_override(tree: Tree, text: str) -> Location:
    """Change a tree by one ``--set`` and return where."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r} is not KEY=VALUE: write it like train.learning_rate=1e-4")
    try:
        parsed, _ = parse_yaml(value, "it")
    except InputError as error:
        raise InputError(
            f"--set {text!r:.200}: the value is not valid YAML: quote it ({error})"
        ) from error
    return assign(tree, key.strip().split("."), parsed, f"--set {text!r}")


def assign(tree: Tree, key: Sequence[str], value: object, said: str) -> Location:
    """Set a dotted key, where a stage of the curriculum is given by its name; return its place.

    Args:
        tree: changed in place.
        key: the key's parts.
        value: its value.
        said: how the user said it, for messages.

    Raises:
        InputError: the key leads nowhere.
    """
    if key[0] == "curriculum":
        tree.setdefault("curriculum", _default_stages(tree.get("preset", "sound")))
    node: Any = tree
    location: Location = ()
    for part in key[:-1]:
        index = _key_or_index(node, location, part, said)
        if isinstance(node, dict):
            node.setdefault(part, {})
        node, location = node[index], (*location, index)
    index = _key_or_index(node, location, key[-1], said)
    if location[:1] == ("curriculum",) and index in EITHER_OR and isinstance(node, dict):
        node.pop(EITHER_OR[index], None)
    node[index] = value
    return (*location, index)


def _key_or_index(node: object, location: Location, part: str, said: str) -> str | int:
    """Return where a part of a dotted key leads inside ``node``."""
    if isinstance(node, dict):
        return part
    if location != ("curriculum",) or not isinstance(node, list):
        raise InputError(
            f"{said}: {_dotted_key(location)} is {node!r}, which has no settings inside: "
            "set it as a whole"
        )
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part not in names:
        raise InputError(
            f"{said}: the curriculum has no stage {part!r}, allowed are "
            f"{', '.join(map(str, names))}: name one of them"
        )
    return names.index(part)


def _default_stages(preset: object) -> list[Tree]:
    of_preset = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    own: list[Tree] | None = of_preset.get("curriculum")
    if own:
        return deepcopy(own)
    return [stage.model_dump(mode="json", exclude_defaults=True) for stage in EQUAL_RATE_STAGES]


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Put settings on top of others, sections into sections."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def _settings_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """The kind of settings that stand at a location."""
    for part in location:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(c for c in (annotation, *get_args(annotation)) if _is_settings(c))
    return model


def _is_settings(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _nearest_key(model: type[BaseModel], location: Location) -> str:
    """Name the key that was probably meant: the same one elsewhere, or one spelled alike here."""
    name = str(location[-1])
    allowed = list(_settings_at(model, location[:-1]).model_fields)
    elsewhere = [key for key in _setting_names(model, "") if key.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if elsewhere:
        guess = elsewhere[0]
    elif close:
        guess = _dotted_key((*location[:-1], close[0]))
    else:
        return f": allowed are {', '.join(allowed)}; use one of them"
    return f", did you mean {guess!r}? (allowed are {', '.join(allowed)})"


def _setting_names(model: type[BaseModel], prefix: str) -> Iterable[str]:
    """Dotted names of all settings, those inside lists left out."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if _is_settings(field.annotation):
            yield from _setting_names(field.annotation, f"{prefix}{name}.")


def _location_of(problem: ErrorDetails) -> Location:
    return tuple(part for part in problem["loc"] if not _is_union_branch(part))


def _dotted_key(location: Location) -> str:
    return ".".join(map(str, location))


def _reason_in_words(message: str) -> str:
    """Pydantic's message inside a sentence, about a list as YAML calls it."""
    return message[0].lower() + message[1:].replace("valid tuple", "list")


def _is_union_branch(part: str | int) -> bool:
    """Pydantic adds the tried branch of a union to the location."""
    return isinstance(part, str) and ("[" in part or part in {"int", "str", "constrained-int"})
