"""YAML files of settings: one may extend another, and every key knows where it stands."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from schemabank.common.errors import InputError, first_line
from schemabank.common.files import read_text
from schemabank.common.plainyaml import Location, parse_yaml
from schemabank.config.overrides import Tree
from schemabank.config.problems import dotted_key, in_words

EXTENDS = "extends"  # a key of files, and no setting
Model = TypeVar("Model", bound=BaseModel)


class SettingsFile:
    """A YAML file with the place of every key.

    Args:
        path: of the file.
        may_extend: whether ``extends`` at its top may name another file, relative to its folder,
            whose settings this one's are put on top of.
        extended_by: the files that extend this one.

    Attributes:
        tree: its settings, with those that it extends.
        base: the file that it extends.
    """

    def __init__(
        self, path: Path, *, may_extend: bool = False, extended_by: tuple[Path, ...] = ()
    ) -> None:
        self.path = path
        self.overridden: set[Location] = set()
        found, lines = parse_yaml(read_text(path), str(path))
        if not isinstance(found or {}, dict):
            raise InputError(
                f"{path} holds a {type(found).__name__}, allowed are keys and values: write "
                "settings like 'arm: lora'"
            )
        self.tree: Tree = cast(Tree, found or {})
        self.places: dict[Location, str] = {}
        for location, line in lines:
            place = f"{path}:{line}"
            if location in self.places:
                first = self.places[location].rpartition(":")[2]
                raise InputError(
                    f"{place}: {dotted_key(location)} is already in line {first}, allowed is "
                    "once: remove one of them"
                )
            self.places[location] = place
        self.base = self._extend((*extended_by, path)) if may_extend else None

    def _extend(self, chain: tuple[Path, ...]) -> "SettingsFile | None":
        """Put the settings on top of those of the file that they extend; return that file."""
        if EXTENDS not in self.tree:
            return None
        path = self._extended_path(self.tree.pop(EXTENDS), chain)
        base = SettingsFile(path, may_extend=True, extended_by=chain)
        kept = {
            location: said for location, said in base.places.items() if not self._replaces(location)
        }
        self.tree, self.places = merge(base.tree, self.tree), kept | self.places
        return base

    def _extended_path(self, name: object, chain: tuple[Path, ...]) -> Path:
        place = self.places[EXTENDS,]
        if not isinstance(name, str):
            raise InputError(
                f"{place}: extends is {name!r:.200}, allowed is the name of one file: name a file "
                "relative to this one's folder"
            )
        path = self.path.parent / name
        # A name that no file can have, or links in a circle, raise where a missing file does not.
        try:
            is_file = path.is_file()
            is_cycle = path.resolve() in {other.resolve() for other in chain}
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{place}: extends is {name!r:.200}, which cannot be read ({first_line(error)}): "
                "name a file relative to this one's folder"
            ) from error
        if is_cycle:
            raise InputError(
                f"{place}: extends is {name!r:.200}, which extends this file in turn, allowed are "
                "other files: remove one of the two"
            )
        if not is_file:
            raise InputError(
                f"{place}: extends is {name!r:.200}, but there is no file {path}: mend it"
            )
        return path

    def _replaces(self, location: Location) -> bool:
        """Whether a setting of another file lies in what this file gives as a whole."""
        node: object = self.tree
        for part in location:
            if not isinstance(node, dict):
                return True
            if part not in node:
                return False
            node = node[part]
        return not isinstance(node, dict)

    def at(self, location: Location) -> str:
        """Where a setting was made: file and line, or the command line."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.overridden:
                return "--set"
            if location[:end] in self.places:
                return self.places[location[:end]]
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
        raise InputError(in_words(error, model, at, tree)) from error


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Put settings on top of others, sections into sections."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged
