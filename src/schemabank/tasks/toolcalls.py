"""Owns tools and their calls as rows hold them, in the form that chat templates take.

A row has the schemas of its tools in the column ``tools``, and an assistant's turn has
``tool_calls``, as OpenAI and transformers write them. Tables write objects as JSON text, or fill
the names that other rows have with nulls. Such nulls are taken away; those in JSON text are meant.
"""

import json
from collections.abc import Mapping, Sequence

from schemabank.common.errors import InputError
from schemabank.tasks.columns import Row, column

TOOLS = "tools"
CALLS = "tool_calls"
SCHEMA = '{"type": "function", "function": {"name": "add", "parameters": {…}}}'
CALL = '{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}'


def tools_in(row: Row) -> str:
    """Return the schemas of a row's tools as a JSON list; nothing without tools.

    Raises:
        InputError: the column holds something else.
    """
    where, columns = row
    value = _parsed(_filled(column(columns, TOOLS)))
    if not value:
        return ""
    if not isinstance(value, list) or not all(_name(tool) for tool in value):
        raise InputError(
            f"{where} has {value!r:.60} in column {TOOLS!r}: allowed is a list of schemas such as "
            f"{SCHEMA}, or that as JSON"
        )
    return _written(value)


def calls_in(place: str, role: str, turn: Mapping[str, object]) -> list[object]:
    """Return a turn's calls of tools, with their arguments as objects.

    Args:
        place: of the turn, for messages.
        role: of the turn; the assistant alone calls.
        turn: as the row has it.

    Raises:
        InputError: the turn holds something else.
    """
    value = _parsed(_filled(turn.get(CALLS)))
    if not value:
        return []
    if role != "assistant":
        raise InputError(
            f"{place} has {CALLS}, but its role is {role!r}: allowed is 'assistant', which alone "
            "calls tools"
        )
    if not isinstance(value, list) or not all(_name(call) for call in value):
        raise InputError(
            f"{place} has {value!r:.60} in {CALLS}: allowed is a list of calls such as {CALL}"
        )
    return [_with_arguments(place, call) for call in value]


def extra_in(role: str, turn: Mapping[str, object], calls: Sequence[object]) -> str:
    """Return what a template is given of a turn beside role and content, as JSON; or nothing."""
    names = ("name", "tool_call_id") if role == "tool" else ()
    named = {name: turn[name] for name in names if turn.get(name)}
    known = {CALLS: list(calls), **named} if calls else named
    return _written(known) if known else ""


def names_in(objects: str) -> list[str]:
    """Return the functions' names in a JSON list of schemas or calls."""
    return [_name(each) for each in json.loads(objects or "[]")]


def arguments_in(calls: str) -> list[str]:
    """Return the names of the arguments, but for nulls, in a JSON list of calls."""
    inner = [call.get("function", call) for call in json.loads(calls or "[]")]
    given = [each.get("arguments") for each in inner]
    return [
        name for each in given if isinstance(each, dict) for name in each if each[name] is not None
    ]


def calls_of(extra: str) -> str:
    """Return the calls in what `extra_in` made, as a JSON list; or nothing."""
    calls = json.loads(extra).get(CALLS) if extra else None
    return _written(calls) if calls else ""


def _name(value: object) -> str:
    """The name of a schema's or a call's function, which may stand in ``function``; or nothing."""
    if not isinstance(value, Mapping):
        return ""
    inner = value.get("function")
    name = (inner if isinstance(inner, Mapping) else value).get("name")
    return name if isinstance(name, str) else ""


def _with_arguments(place: str, call: object) -> object:
    """A call with its arguments as an object, which OpenAI writes as JSON text."""
    assert isinstance(call, dict)
    inner = call.get("function")
    if isinstance(inner, dict):
        return {**call, "function": _with_arguments(place, inner)}
    if "arguments" not in call:
        return call
    found = _parsed(call["arguments"])
    if isinstance(found, str) and _is_like_json(found):
        raise InputError(
            f"{place} calls {call['name']!r} with arguments that are no JSON ({found!r:.60}): "
            "allowed is an object, or one as JSON, mend it or leave the row out"
        )
    return {**call, "arguments": found}


def _parsed(value: object) -> object:
    """An object or list that is written as JSON text; other values as they are."""
    if not isinstance(value, str) or not _is_like_json(value):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _is_like_json(text: str) -> bool:
    return text.strip()[:1] in {"{", "["}


def _filled(value: object) -> object:
    """A value without the nulls that a table puts where an object lacks a name."""
    if isinstance(value, Mapping):
        return {name: _filled(inner) for name, inner in value.items() if inner is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def _written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
