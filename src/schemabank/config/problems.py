"""Settings that are refused, each in one sentence: where, what, what is allowed, what to do."""

import difflib
import re
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemabank.common.plainyaml import Location
from schemabank.config import othernames
from schemabank.config.places import section_at, setting_names, settings_at

LONGEST_SHOWN = 200  # characters of a value that is written in another way


def in_words(
    error: ValidationError,
    model: type[BaseModel],
    at: Callable[[Location], str],
    tree: Mapping[str, object],
) -> str:
    """The first problem, as one sentence.

    Args:
        error: the problems.
        model: the settings that were to be made.
        at: says where a setting was made.
        tree: what they were to be made of.
    """
    # A key that is missing may be the one that is misspelt, which then is the first problem.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] == "missing")
    located = [(_location_of(problem, tree), problem) for problem in problems]
    first = located[0][0]
    # Every branch of a union has its problem; the one deepest inside the value says the most.
    location = max((loc for loc, _ in located if loc[: len(first)] == first), key=len)
    problem, *others = [problem for loc, problem in located if loc == location]
    said, where = _with_stage_named(location, tree), at(location)
    key = dotted_key(said)
    if problem["type"] == "extra_forbidden":
        nearest = _nearest_key(model, location, dotted_key(said[:-1]))
        return f"{where}: unknown key {key!r:.200}{nearest}"
    if problem["type"] == "missing" and isinstance(location[-1], str):
        field = settings_at(model, location[:-1]).model_fields[str(location[-1])]
        return f"{where}: {key} is missing: add it ({field.description})"
    if problem["type"] == "value_error":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {key + ': ' if key else ''}{reason}"
    if problem["type"] in {"model_type", "dict_type"}:
        return f"{where}: {key} is {problem['input']!r:.200}, but {_inner_keys(model, location)}"
    reasons = dict.fromkeys(_reason_in_words(p["msg"]) for p in (problem, *others))
    value = problem["input"]
    mend = f"change it there{_such_as(problem, *others)}"
    return f"{where}: {key} is {value!r:.200}, but {' or '.join(reasons)}: {mend}"


def dotted_key(location: Location) -> str:
    """Return a location as a dotted key; items of a list go by their numbers."""
    return ".".join(map(str, location))


def _with_stage_named(location: Location, tree: Mapping[str, object]) -> Location:
    """A location as ``--set`` takes it, where a stage of the curriculum goes by its name."""
    stages = tree.get("curriculum")
    if location[:1] != ("curriculum",) or not isinstance(stages, list):
        return location
    index = location[1] if location[1:] else None
    stage = stages[index] if isinstance(index, int) else None
    name = stage.get("name") if isinstance(stage, dict) else None
    return ("curriculum", name, *location[2:]) if isinstance(name, str) else location


def _inner_keys(model: type[BaseModel], location: Location) -> str:
    """What to write where a section is due and something else stands, such as nothing."""
    mend = "put them below it, or remove it"
    section = section_at(model, location)
    if section is None:
        return f"it is a section, allowed are names with values: {mend}"
    return f"it is a section, allowed are its settings {', '.join(section.model_fields)}: {mend}"


def _such_as(*problems: ErrorDetails) -> str:
    """How the value could be written, where it is a text for a list or no text where one is due."""
    value, kinds = problems[0]["input"], {problem["type"] for problem in problems}
    if "tuple_type" in kinds and isinstance(value, str) and 0 < len(value) <= LONGEST_SHOWN:
        items = re.split(r"[,;\s]+", value.strip(" ,;()"))
        # Only in quotes is a backslash with an n a line's end.
        shown = (item if re.fullmatch(r"[\w./-]+", item) else f'"{item}"' for item in items)
        if len(items) > 1 or len(kinds) == 1:
            return f", such as [{', '.join(shown)}]"
    if "string_type" in kinds and value is not None:
        return ", a text stands in quotes"
    return ""


def _nearest_key(model: type[BaseModel], location: Location, above: str) -> str:
    """Name the key that was probably meant, what to know of it, and the allowed ones.

    Args:
        model: all settings.
        location: of the unknown key.
        above: the section that it stands in, for messages.
    """
    name = str(location[-1]).casefold().replace("-", "_")
    allowed = ", ".join(settings_at(model, location[:-1]).model_fields)
    if name in othernames.NO_SETTINGS:
        return f": {othernames.NO_SETTINGS[name]} (allowed are {allowed})"
    if "." in name and name in setting_names(model):
        section, _, inner = name.partition(".")
        return f": dots are for --set, in a file write {section}: {{{inner}: ...}}"
    asked = (model, location, name, above)
    guess = _counterpart(*asked) or _spelled_alike(*asked)
    if guess is None:
        return f": allowed are {allowed}; use one of them"
    note = f"{othernames.NOTES[name]}; " if name in othernames.NOTES else ""
    return f", did you mean {guess!r}? ({note}allowed are {allowed})"


def _counterpart(model: type[BaseModel], location: Location, name: str, above: str) -> str | None:
    """The setting that other tools call so: in the same section where there is one, or elsewhere.

    ``name`` is the key's last part in the letters of `othernames`.
    """
    other = othernames.SETTINGS
    section = str(location[-2]) if location[1:] else ""
    setting = other.get(f"{section}.{name}") or other.get(name)
    if setting is None:
        return None
    here = setting.rpartition(".")[2]
    if above and here in settings_at(model, location[:-1]).model_fields:
        return f"{above}.{here}"  # a stage has a learning rate of its own
    return setting if setting in setting_names(model) else None


def _spelled_alike(model: type[BaseModel], location: Location, name: str, above: str) -> str | None:
    """The same key elsewhere, or one spelled alike here."""
    elsewhere = [key for key in setting_names(model) if key.rpartition(".")[2] == name]
    here = settings_at(model, location[:-1]).model_fields
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.6)
    if elsewhere:
        return elsewhere[0]
    return f"{above}.{close[0]}".removeprefix(".") if close else None


def _location_of(problem: ErrorDetails, tree: Mapping[str, object]) -> Location:
    """A problem's place in the tree, where a key may have a name like that of a union's branch."""
    found: list[str | int] = []
    node: object = tree
    for part in problem["loc"]:
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(part, int):
            node = node[part] if isinstance(node, list) and part < len(node) else None
        elif _is_union_branch(part):
            continue
        found.append(part)
    return tuple(found)


def _reason_in_words(message: str) -> str:
    """Pydantic's message inside a sentence, about a list as YAML calls it."""
    return message[0].lower() + message[1:].replace("valid tuple", "list")


def _is_union_branch(part: str) -> bool:
    """Pydantic adds the tried branch of a union to the location."""
    return "[" in part or (part in {"int", "str", "constrained-int"})
