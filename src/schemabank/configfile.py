"""Reading a YAML configuration: presets, overrides, and errors that point at a line.

A file states only differences from its preset. Every error names the key, its line, what is
allowed and the mend; nothing is computed before the whole file is valid.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from schemabank.config import PRESETS, ExperimentConfig, RunConfig
from schemabank.errors import InputError

Tree = dict[str, Any]
Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

NOT_IDENTITY = {"engine", "preset"}


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a configuration file.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings that win over the file; the value is read as YAML.

    Raises:
        InputError: the file is missing or malformed, or a setting is unknown or out of range.
    """
    source = _Source(path)
    tree = source.tree
    for override in overrides:
        key, value = _parse_override(override)
        _assign(tree, key, value, override)
        source.overridden.add(key)
    preset = tree.get("preset", "sound")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(
            f"{source.at(('preset',))}: preset is {preset!r}, allowed are {', '.join(PRESETS)}: "
            "name one of them"
        )
    return source.validate(_merged(PRESETS[preset], tree), ExperimentConfig)


def load_run(path: Path) -> RunConfig:
    """Read the resolved ``config.yaml`` of a run."""
    source = _Source(path)
    return source.validate(source.tree, RunConfig)


def overridden(run: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """Return a run with ``a.b=value`` settings changed.

    Raises:
        InputError: a setting is unknown or out of range.
    """
    tree = run.model_dump(mode="json")
    for override in overrides:
        key, value = _parse_override(override)
        _assign(tree, key, value, override)
    return _validated(tree, RunConfig, lambda _: "--set")


def config_hash(run: RunConfig) -> str:
    """Return 10 hex digits of the settings that can change a run's result."""
    tree = run.model_dump(mode="json", exclude=NOT_IDENTITY)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:10]


def run_id(run: RunConfig) -> str:
    """Return the run's folder name: arm, seed and configuration hash."""
    return f"{run.arm}-seed{run.seed}-{config_hash(run)}"


def to_yaml(run: RunConfig) -> str:
    """Return the resolved configuration as YAML, which :func:`load_run` reads back."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Source:
    """A YAML file with the line of every key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.overridden: set[tuple[str, ...]] = set()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {str(path)!r} ({error}): name a YAML file") from error
        try:
            self.tree: Tree = yaml.safe_load(text) or {}
            self.lines = dict(_key_lines(yaml.compose(text, Loader=yaml.SafeLoader), ()))
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is not valid YAML ({reason}): mend it there") from error
        if not isinstance(self.tree, dict):
            raise InputError(f"{path} holds a {type(self.tree).__name__}, not keys and values")

    def at(self, location: Location) -> str:
        """Where a setting was made: file and line, or the command line."""
        for end in range(len(location), 0, -1):
            if tuple(map(str, location[:end])) in self.overridden:
                return "--set"
            if location[:end] in self.lines:
                return f"{self.path}:{self.lines[location[:end]]}"
        return str(self.path)

    def validate(self, tree: Tree, model: type[Model]) -> Model:
        return _validated(tree, model, self.at)


def _validated(tree: Tree, model: type[Model], at: Callable[[Location], str]) -> Model:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise InputError(_sentence(error, model, at)) from error


def _sentence(error: ValidationError, model: type[BaseModel], at: Callable[[Location], str]) -> str:
    """The first problem, as one sentence."""
    problem = error.errors()[0]
    location = tuple(part for part in problem["loc"] if not _is_union_branch(part))
    key = ".".join(map(str, location))
    where = at(location)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_nearest(model, location)}"
    if problem["type"] == "missing":
        return f"{where}: {key} is missing: add it"
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{reason}"
    reason = reason[0].lower() + reason[1:]
    return f"{where}: {key} is {problem['input']!r}, but {reason}: change it there"


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r} is not KEY=VALUE: write it like train.learning_rate=1e-4")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text!r}: the value is not valid YAML: quote it") from error
    return tuple(key.strip().split(".")), _number(parsed)


def _number(value: object) -> object:
    """YAML 1.1 reads 1e-4 as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _assign(tree: Tree, key: tuple[str, ...], value: object, override: str) -> None:
    """Set a dotted key, where a stage of the curriculum may be given by its name."""
    node: Any = tree
    for depth, part in enumerate(key):
        last = depth == len(key) - 1
        if isinstance(node, list):
            names = [item.get("name") for item in node if isinstance(item, dict)]
            if part not in names or last:
                raise InputError(
                    f"--set {override!r}: {part!r} is not one of {', '.join(map(str, names))}: "
                    "name a stage and its setting"
                )
            node = node[names.index(part)]
        elif not isinstance(node, dict):
            raise InputError(f"--set {override!r}: {'.'.join(key[:depth])} has no settings inside")
        elif last:
            node[part] = value
        elif part == "curriculum" and part not in node:
            node[part] = _default_stages()
            node = node[part]
        else:
            node = node.setdefault(part, {})


def _default_stages() -> list[Tree]:
    stages: list[Tree] = ExperimentConfig(arm="schemabank").model_dump(mode="json")["curriculum"]
    return stages


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def _key_lines(node: yaml.Node | None, path: Location) -> Iterable[tuple[Location, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            yield inner, key.start_mark.line + 1
            yield from _key_lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _key_lines(value, (*path, index))


def _fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """Names of the settings that may stand at a location; none inside a plain value."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [c for c in (annotation, *get_args(annotation)) if _is_settings(c)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _is_settings(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _nearest(model: type[BaseModel], location: Location) -> str:
    """Name the key that was probably meant: the same one elsewhere, or one spelled alike here."""
    name = str(location[-1])
    allowed = _fields_at(model, location[:-1])
    sections = [key for key in model.model_fields if name in _fields_at(model, (key,))]
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if close:
        guess = ".".join(map(str, (*location[:-1], close[0])))
    elif sections:
        guess = f"{sections[0]}.{name}"
    else:
        return f": allowed are {', '.join(allowed)}; use one of them"
    return f", did you mean {guess!r}? (allowed are {', '.join(allowed)})"


def _is_union_branch(part: str | int) -> bool:
    """Pydantic adds the tried branch of a union to the location."""
    return isinstance(part, str) and ("[" in part or part in {"int", "str", "constrained-int"})
