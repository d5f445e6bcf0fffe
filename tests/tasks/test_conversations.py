"""Chats in rows: both forms become the same turns, and what is not read is refused."""

import json
from collections.abc import Mapping, Sequence

import pytest

from schemabank.common.errors import InputError
from schemabank.tasks.base import Turn
from schemabank.tasks.conversations import chat_in, is_chat

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao"},
]
SHARED = [
    {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
    for m in MESSAGES
]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TURNS = (
    Turn("system", "Be kind."),
    Turn("user", "Hi"),
    Turn("assistant", "Hello!", learned=True),
    Turn("user", "Bye"),
    Turn("assistant", "Ciao", learned=True),
)


def turns(
    messages: object, *, last_only: bool = False, **columns: object
) -> Sequence[tuple[str, str, bool]]:
    return chat_in(("row 1", {"c": messages, **columns}), "c", last_only=last_only).turns


@pytest.mark.parametrize("messages", [MESSAGES, SHARED], ids=["openai", "sharegpt"])
def test_both_forms_become_the_same_turns(messages: list[Mapping[str, str]]) -> None:
    assert is_chat(messages)
    assert turns(messages) == TURNS
    chat = chat_in(("row 1", {"c": messages}), "c", last_only=False)
    assert (chat.prompt, chat.answer) == ("Be kind.\n\nHi\n\nHello!\n\nBye", "Ciao")


def test_the_last_turn_alone_is_learned_where_that_is_asked_for() -> None:
    assert [turn[2] for turn in turns(MESSAGES, last_only=True)] == [False] * 4 + [True]


def test_what_follows_the_last_learned_turn_is_left_out() -> None:
    assert turns([*MESSAGES, {"role": "user", "content": "?"}]) == TURNS


@pytest.mark.parametrize("weight", [{"weight": 0}, {"train": False}, {"training": False}])
def test_a_turn_may_say_that_it_is_not_learned(weight: dict[str, object]) -> None:
    some = [*MESSAGES[:2], MESSAGES[2] | weight, MESSAGES[3], MESSAGES[4] | {"weight": 1}]
    assert [turn[2] for turn in turns(some)] == [False, False, False, False, True]
    last = [*MESSAGES[:4], MESSAGES[4] | weight]
    assert turns(last) == TURNS[:3]


def test_a_pair_of_columns_is_learned_from_the_second_on() -> None:
    row = {"prompt": MESSAGES[:4], "completion": MESSAGES[4:]}
    found = chat_in(("row 1", row), ("prompt", "completion"), last_only=False).turns
    assert found == (*TURNS[:2], Turn("assistant", "Hello!"), *TURNS[3:])


def test_text_may_come_in_parts_and_nulls_of_a_table_are_nothing() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    said = {"role": "assistant", "content": parts, "tool_calls": None, "weight": None, "from": None}
    assert turns([MESSAGES[1], said], tools=None)[1] == TURNS[2]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, r"has None in column 'c' \(task\.records\.messages\)"),
        ("Hello", "has 'Hello' in column 'c'"),
        ([], r"has \[\] in column 'c'"),
        (["Hello"], "turn 1 is 'Hello': allowed is a list of turns"),
        ([{"role": "bot", "content": "x"}], "turn 1 has the role 'bot': allowed are system, "),
        ([{"content": "x"}], "turn 1 has the role None"),
        ([{"role": "user", "content": None}], "turn 1 says None, which is no text"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            r"turn 1 says \[.*which is no text",
        ),
        (MESSAGES[:2], "has no turn of the assistant that is to be"),
        (MESSAGES[2:3], "has no turn before the first that is to be"),
        ([*MESSAGES[:2], {"role": "assistant", "content": " "}], "turn 3 is an empty turn"),
        (
            [*MESSAGES[:2], MESSAGES[2] | {"tool_calls": [1]}],
            r"turn 3 has \[1\] in tool_calls: allowed",
        ),
        ([MESSAGES[1] | {"tool_calls": [CALL]}], "turn 1 has tool_calls, but its role is 'user'"),
        ([*MESSAGES[:2], MESSAGES[2] | {"thinking": "?"}], "turn 3 has thinking, which is not"),
        ([*MESSAGES[:2], MESSAGES[2] | {"weight": 0.5}], r"turn 3 has weight 0\.5: allowed are 0"),
    ],
)
def test_what_is_no_chat_to_learn_is_refused_by_row_and_turn(messages: object, said: str) -> None:
    with pytest.raises(InputError, match=f"row 1.*{said}"):
        turns(messages)


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLING = [
    MESSAGES[1],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "tool_call_id": "1", "content": "2", "unknown": 3},
    {"role": "assistant", "content": "It is 2.", "name": "unread", "tool_calls": None},
]


def test_tools_and_their_calls_are_given_to_the_template() -> None:
    found = chat_in(("row 1", {"c": CALLING, "tools": [TOOL]}), "c", last_only=False)
    assert json.loads(found.tools) == [TOOL]
    _, call, answer, said = found.turns
    assert (call.content, call.learned) == ("", True)
    inner = {"name": "add", "arguments": {"a": 1}}
    assert json.loads(call.extra) == {"tool_calls": [{"type": "function", "function": inner}]}
    assert json.loads(answer.extra) == {"name": "add", "tool_call_id": "1"}
    assert (answer.learned, said.extra) == (False, "")
    assert found.answer == "It is 2."
    first = chat_in(("row 1", {"c": CALLING[:2]}), "c", last_only=False)
    assert json.loads(first.answer) == json.loads(call.extra)["tool_calls"]


def calling(arguments: object) -> list[dict[str, object]]:
    inner = {"name": "add", "arguments": arguments}
    return [
        MESSAGES[1],
        {"role": "assistant", "content": None, "tool_calls": [{"function": inner}]},
    ]


def test_nulls_in_json_text_are_meant_and_those_of_a_table_are_not() -> None:
    for arguments, expected in (
        ('{"a": 1, "b": null}', {"a": 1, "b": None}),
        ({"a": 1, "b": None}, {"a": 1}),
    ):
        found = chat_in(("row 1", {"c": calling(arguments)}), "c", last_only=False).turns[-1]
        (call,) = json.loads(found.extra)["tool_calls"]
        assert call["function"]["arguments"] == expected
    schema = {"name": "add", "parameters": {"properties": {"b": {"default": None}}}}
    row = {"c": MESSAGES, "tools": json.dumps([schema])}
    assert json.loads(chat_in(("row 1", row), "c", last_only=False).tools) == [schema]


def test_arguments_that_are_torn_json_are_refused() -> None:
    with pytest.raises(InputError, match="turn 2 calls 'add' with arguments that are no JSON"):
        chat_in(("row 1", {"c": calling('{"a": 1')}), "c", last_only=False)


def test_tools_may_be_json_and_have_a_tables_nulls() -> None:
    filled = {"type": "function", "function": {**TOOL["function"], "strict": None}}  # type: ignore[dict-item]
    for tools in (json.dumps([TOOL]), [filled]):
        found = chat_in(("row 1", {"c": MESSAGES, "tools": tools}), "c", last_only=False)
        assert json.loads(found.tools) == [TOOL]
    for tools in (None, [], "", "[]"):
        assert chat_in(("row 1", {"c": MESSAGES, "tools": tools}), "c", last_only=False).tools == ""
    for tools in ("add", [3], [{"type": "function"}], {"name": "add"}):
        with pytest.raises(InputError, match=r"row 1 has .* in column 'tools': allowed is a list"):
            turns(MESSAGES, tools=tools)


@pytest.mark.parametrize("value", [None, "x", [], ["x"], {"role": "user"}])
def test_other_values_are_no_chat(value: object) -> None:
    assert not is_chat(value)


def test_a_column_says_what_the_system_does_where_the_chat_does_not() -> None:
    for system in (None, "", " ", 3):
        assert turns(MESSAGES[1:], system=system) == TURNS[1:]
    assert turns(MESSAGES[1:], system="Be kind.") == TURNS
    assert turns(MESSAGES, system="Be rude.") == TURNS
    with pytest.raises(InputError, match="no turn before the first"):
        turns(MESSAGES[2:3])


def test_a_name_that_is_there_is_not_suggested() -> None:
    with pytest.raises(InputError) as error:
        turns(None)
    assert "did you mean" not in str(error.value)
