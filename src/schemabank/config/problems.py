"""Settings that are refused, each in one sentence: where, what, what is allowed, what to do."""

import difflib
import re
from collections.abc import Callable

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemabank.common.plainyaml import Location
from schemabank.config import othernames
from schemabank.config.places import setting_names, settings_at


def in_words(error: ValidationError, model: type[BaseModel], at: Callable[[Location], str]) -> str:
    """The first problem, as one sentence."""
    # A key that is missing may be the one that is misspelt, which then is the first problem.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] == "missing")
    located = [(_location_of(problem), problem) for problem in problems]
    first = located[0][0]
    # Every branch of a union has its problem; the one deepest inside the value says the most.
    location = max((loc for loc, _ in located if loc[: len(first)] == first), key=len)
    problem, *others = [problem for loc, problem in located if loc == location]
    key, where = dotted_key(location), at(location)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_nearest_key(model, location)}"
    if problem["type"] == "missing" and isinstance(location[-1], str):
        field = settings_at(model, location[:-1]).model_fields[str(location[-1])]
        return f"{where}: {key} is missing: add it ({field.description})"
    if problem["type"] == "value_error":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {key + ': ' if key else ''}{reason}"
    reasons = dict.fromkeys(_reason_in_words(p["msg"]) for p in (problem, *others))
    value = problem["input"]
    mend = f"change it there{_such_as(problem)}"
    return f"{where}: {key} is {value!r:.200}, but {' or '.join(reasons)}: {mend}"


def dotted_key(location: Location) -> str:
    """Return a location as a dotted key; items of a list go by their numbers."""
    return ".".join(map(str, location))


def _such_as(problem: ErrorDetails) -> str:
    """How the value could be written, where it is a text for a list or no text where one is due."""
    value = problem["input"]
    if problem["type"] == "tuple_type" and isinstance(value, str) and value:
        items = re.split(r"[,;\s]+", value.strip(" ,;()"))
        return f", such as [{', '.join(items)}]"
    if problem["type"] == "string_type" and value is not None:
        return ", a text stands in quotes"
    return ""


def _nearest_key(model: type[BaseModel], location: Location) -> str:
    """Name the key that was probably meant, what to know of it, and the allowed ones."""
    name = str(location[-1]).casefold().replace("-", "_")
    allowed = ", ".join(settings_at(model, location[:-1]).model_fields)
    if name in othernames.NO_SETTINGS:
        return f": {othernames.NO_SETTINGS[name]} (allowed are {allowed})"
    guess = _counterpart(model, location, name) or _spelled_alike(model, location)
    if guess is None:
        return f": allowed are {allowed}; use one of them"
    note = f"{othernames.NOTES[name]}; " if name in othernames.NOTES else ""
    return f", did you mean {guess!r}? ({note}allowed are {allowed})"


def _counterpart(model: type[BaseModel], location: Location, name: str) -> str | None:
    """The setting that other tools call so: in the same section where there is one, or elsewhere.

    Args:
        model: all settings.
        location: of the unknown key.
        name: its last part, in the letters of `othernames`.
    """
    other = othernames.SETTINGS
    section = str(location[-2]) if location[1:] else ""
    setting = other.get(f"{section}.{name}") or other.get(name)
    if setting is None:
        return None
    here = (*location[:-1], setting.rpartition(".")[2])
    if location[1:] and here[-1] in settings_at(model, location[:-1]).model_fields:
        return dotted_key(here)  # a stage has a learning rate of its own
    return setting if setting in setting_names(model) else None


def _spelled_alike(model: type[BaseModel], location: Location) -> str | None:
    """The same key elsewhere, or one spelled alike here."""
    name = str(location[-1])
    elsewhere = [key for key in setting_names(model) if key.rpartition(".")[2] == name]
    here = settings_at(model, location[:-1]).model_fields
    close = difflib.get_close_matches(name, here, n=1, cutoff=0.6)
    if elsewhere:
        return elsewhere[0]
    return dotted_key((*location[:-1], close[0])) if close else None


def _location_of(problem: ErrorDetails) -> Location:
    return tuple(part for part in problem["loc"] if not _is_union_branch(part))


def _reason_in_words(message: str) -> str:
    """Pydantic's message inside a sentence, about a list as YAML calls it."""
    return message[0].lower() + message[1:].replace("valid tuple", "list")


def _is_union_branch(part: str | int) -> bool:
    """Pydantic adds the tried branch of a union to the location."""
    return isinstance(part, str) and ("[" in part or part in {"int", "str", "constrained-int"})
