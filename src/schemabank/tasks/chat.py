"""Owns the chat template: it puts a prompt into the user's turn, or finds a chat's learned turns.

A template is a program that came with the tokenizer. It may refuse a chat, leave text out, or write
today's date; each would change what is asked without a word.

Where a learned turn begins and ends is found by rendering: a chat up to the turn, with the
template's invitation to answer, and up to its end. The first must begin the second, word for word,
or the turn has no place in it. So a template needs no ``{% generation %}``.

Some templates write a turn in another way once more follows: they leave out what was thought, or
the end token. Such a turn is learned as it is written when it is the last, since a model says it
like that, and the chat goes on behind it. TRL's templates for training do the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError

from schemabank.common.errors import InputError, first_line
from schemabank.tasks.base import Example, Turn
from schemabank.tasks.toolcalls import arguments_in, calls_of, names_in

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# What a template gets that asks for today: another date would give other prompts every day. It is
# the one that Llama 3's template writes where it cannot ask.
CHAT_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxX"  # of strftime
# What a program in Jinja can end in, beside its own refusal.
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
SHOWN = 60  # characters of a prompt or a rendered chat in a message
PROBES = ("Zq7xW", "Kj3vB")  # words that no template writes
PROBE = (Turn("user", "question"), Turn("assistant", PROBES[0]))


@dataclass(frozen=True)
class Piece:
    """A part of a chat's text: ``given`` to the model, what it says, or the ``end`` of that."""

    text: str
    kind: Literal["given", "said", "end"]


def in_chat(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a prompt as the user's turn of a chat that the assistant answers.

    Raises:
        InputError: there is no template, it raises, or the chat lacks a part of the prompt.
    """
    rendered = _rendered(
        [Turn("user", prompt)],
        tokenizer,
        invites=True,
        what=f"put the prompt {prompt!r:.{SHOWN}} into the user's turn",
        mend="allowed are templates for a chat of one user's turn, mend it or set "
        "task.chat_template to false",
    )
    if is_within(prompt, rendered):
        return rendered
    raise InputError(
        f"the tokenizer's chat template leaves out the prompt {prompt!r:.{SHOWN}} or a part of it "
        f"(it gives {rendered!r:.{SHOWN}}): allowed are templates that hold the user's whole turn, "
        "mend it or set task.chat_template to false"
    )


def chat_pieces(example: Example, tokenizer: "PreTrainedTokenizerBase") -> list[Piece]:
    """Return a chat's text in pieces.

    Args:
        example: with its turns, of which the last is a learned one, and tools.
        tokenizer: has the template.

    Returns:
        Pieces that take turns: what is given, then for a learned turn what is said and, where the
        template writes one, the mark that ends it. White space behind the last mark is left out.
        Joined they are the text that the template writes, unless it changes earlier turns.

    Raises:
        InputError: the template refuses the chat, leaves out or changes what a learned turn says,
            a tool or a call, or writes what stands before a turn in another way once more follows.
    """
    lead, end = _frame(tokenizer, str(tokenizer.chat_template))
    chat = _Chat(example, tokenizer)
    _check_shown(chat, chat.text(example.turns))
    pieces: list[Piece] = []
    before: _Spot | None = None
    for index, turn in enumerate(example.turns):
        if turn.learned:
            spot = _spot(chat, index, lead)
            pieces += _given(chat, before, spot, pieces, end)
            pieces += _said(chat, spot, end)
            before = spot
    return pieces


@dataclass(frozen=True)
class _Chat:
    """A chat and the template that writes it."""

    example: Example
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def name(self) -> str:
        return repr(self.example.id)

    def text(self, turns: Sequence[Turn], *, invites: bool = False) -> str:
        """Render turns, with the invitation to answer where it is asked for."""
        return _render(turns, self.tokenizer, self.name, tools=self.example.tools, invites=invites)


@dataclass(frozen=True)
class _Spot:
    """Where a learned turn stands in the text up to its end.

    Attributes:
        index: of the turn.
        text: up to the turn's end; without white space behind it.
        start: where the turn begins in it.
    """

    index: int
    text: str
    start: int

    @property
    def context(self) -> str:
        """What stands before the turn."""
        return self.text[: self.start]


def _spot(chat: _Chat, index: int, lead: str) -> _Spot:
    """Find a learned turn, with what the template writes before it in every answer."""
    turns = chat.example.turns
    before, upto = chat.text(turns[:index], invites=True), chat.text(turns[: index + 1])
    if not upto.startswith(before):
        raise InputError(_no_place(chat.name, index, before, upto))
    return _Spot(index, upto.rstrip(), len(before) + len(lead) * upto.startswith(before + lead))


def _said(chat: _Chat, spot: _Spot, end: str) -> list[Piece]:
    """What a learned turn says, and the mark that ends it."""
    said = spot.text[spot.start :]
    ends = bool(end) and said.endswith(end)
    said = said.removesuffix(end)
    turn = chat.example.turns[spot.index]
    if not is_within(turn.content, said):
        raise InputError(
            f"the tokenizer's chat template leaves out or changes what the assistant says in "
            f"turn {spot.index + 1} of {chat.name} ({turn.content!r:.{SHOWN}} becomes "
            f"{said!r:.{SHOWN}}): allowed are templates that hold it, mend the template or "
            "the turn"
        )
    _check_called(chat, spot.index, said)
    return [Piece(said, "said"), *([Piece(end, "end")] if ends else [])]


def _given(
    chat: _Chat, before: _Spot | None, spot: _Spot, pieces: list[Piece], end: str
) -> list[Piece]:
    """What stands between two learned turns; an end token that only a last turn has is cut off."""
    if before is None:
        return [Piece(spot.context, "given")]
    if spot.context.startswith(before.text):
        return [Piece(spot.context[len(before.text) :], "given")]
    if not spot.context.startswith(before.context):
        raise InputError(_no_place(chat.name, spot.index, before.context, spot.context))
    behind = _behind(chat, before, spot)
    if pieces[-1].kind == "end":
        bare = end.removesuffix(chat.tokenizer.eos_token or "").rstrip()
        mark = bare if bare and not behind.startswith(end) and behind.startswith(bare) else end
        pieces[-1] = Piece(mark, "end")
        behind = behind.removeprefix(mark)
    return [Piece(behind, "given")]


def _behind(chat: _Chat, before: _Spot, spot: _Spot) -> str:
    """What is written behind a turn that is written in another way once more follows.

    It is what stays the same if the turn says something else. Two other words are tried, as one may
    end like the turn.
    """
    turns, found = chat.example.turns, spot.context
    for word in PROBES:
        other = turns[before.index]._replace(content=word)
        changed = [*turns[: before.index], other, *turns[before.index + 1 : spot.index]]
        text = chat.text(changed, invites=True)
        lead = spot.context[len(chat.text(turns[: spot.index], invites=True)) :]
        same = _shared(found[::-1], (text + lead)[::-1])[::-1]
        found = same if len(same) < len(found) else found
    if len(found) > len(spot.context) - len(before.context):
        raise InputError(_no_place(chat.name, before.index, before.text, spot.context))
    return found


def calls_tools(turn: Turn) -> bool:
    """Return whether a turn calls tools."""
    return bool(calls_of(turn.extra))


def joined(pieces: Sequence[Piece]) -> str:
    """Return the text of pieces."""
    return "".join(piece.text for piece in pieces)


def is_within(part: str, whole: str) -> bool:
    """Return whether a text holds another one, whatever the white space."""
    return part.strip() in whole or " ".join(part.split()) in " ".join(whole.split())


def _check_shown(chat: _Chat, whole: str) -> None:
    """Refuse a template that leaves out what is said to the assistant, or its tools.

    Some know no tool and no developer, and say nothing about it. What the assistant itself said
    earlier may be shortened: many templates leave out what it thought.
    """
    _check_named(chat, names_in(chat.example.tools), whole, "a tool of")
    for number, turn in enumerate(chat.example.turns, start=1):
        _check_called(chat, number - 1, whole)
        if turn.role == "assistant" or is_within(turn.content, whole):
            continue
        if json.dumps(turn.content, ensure_ascii=False) in whole:  # as Llama 3's writes a tool's
            continue
        raise InputError(
            f"the tokenizer's chat template leaves out or changes turn {number} of {chat.name}, "
            f"where {turn.role} says {turn.content!r:.{SHOWN}}: allowed are chats whose roles and "
            "order the template knows, write the turn into another one or leave the row out"
        )


def _check_called(chat: _Chat, index: int, text: str) -> None:
    """Refuse a template that leaves out a turn's calls, or their arguments."""
    calls, turn = calls_of(chat.example.turns[index].extra), f"the call in turn {index + 1} of"
    _check_named(chat, names_in(calls), text, turn)
    _check_named(chat, arguments_in(calls), text, f"an argument of {turn}")


def _check_named(chat: _Chat, names: Sequence[str], text: str, what: str) -> None:
    """Refuse a template that writes no tools, or no calls: it says nothing about them."""
    for name in names:
        if name not in text and json.dumps(name, ensure_ascii=False)[1:-1] not in text:
            raise InputError(
                f"the tokenizer's chat template leaves out {what} {chat.name}, {name!r}: allowed "
                "are templates that write tools and their calls, use a model that has one, or "
                "leave tools out of the data"
            )


@lru_cache(maxsize=4)
def _frame(tokenizer: "PreTrainedTokenizerBase", _template: str) -> tuple[str, str]:
    """Return what a tokenizer's template writes before and behind what the assistant says.

    Before it is nothing where the template's invitation to answer has it all. White space at the
    outer ends is no part of either.
    """
    name = "a chat of one question"
    question, whole = PROBE[:1], _render(PROBE, tokenizer, name)
    invited = _render(question, tokenizer, name, invites=True)
    _, _, behind = whole.partition(PROBE[1].content)
    lead = ""
    if invited == _render(question, tokenizer, name) and whole.startswith(invited):
        lead = whole[len(invited) :].partition(PROBE[1].content)[0]
    return lead if lead.strip() else "", behind.rstrip()


def _render(
    turns: Sequence[Turn],
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    *,
    tools: str = "",
    invites: bool = False,
) -> str:
    """Render turns of a chat, with the invitation to answer where it is asked for."""
    return _rendered(
        turns,
        tokenizer,
        tools=tools,
        invites=invites,
        what=f"render the first {len(turns)} turns of {name}",
        mend="allowed are chats whose roles and order the template knows, mend the chat (a "
        "template may know no system turn, or want user and assistant to take turns) or use a "
        "model with another template",
    )


def _rendered(
    turns: Sequence[Turn],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tools: str = "",
    invites: bool,
    what: str,
    mend: str,
) -> str:
    if tokenizer.chat_template is None:
        raise InputError(
            "the data or task.chat_template ask for a chat, but the tokenizer has no chat "
            "template: allowed are models that have one, use such a model, or set "
            "task.chat_template to false and name columns in task.prompt and task.records.target"
        )
    chat = [{"role": t.role, "content": t.content, **json.loads(t.extra or "{}")} for t in turns]
    schemas = json.loads(tools) if tools else None
    try:
        template = tokenizer.get_chat_template(tools=schemas)
        if "strftime_now" in template:
            template = _fixed_date_macro() + template
        return str(
            tokenizer.apply_chat_template(
                chat,
                tools=schemas,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=invites,
            )
        )
    except (*FAULTS, RecursionError, MemoryError) as error:  # as of one that repeats a text
        raise InputError(
            f"the tokenizer's chat template cannot {what} "
            f"({type(error).__name__}: {first_line(error)}): {mend}"
        ) from error


def _no_place(name: str, index: int, short: str, long: str) -> str:
    """Say where the text before a turn and that of more of the chat part."""
    place = len(_shared(short, long))
    return (
        f"the tokenizer's chat template writes what stands before turn {index + 1} of {name} in "
        f"another way once more follows ({short[place:]!r:.{SHOWN}} becomes "
        f"{long[place:]!r:.{SHOWN}}), so that the turn has no place of its own: allowed are "
        "templates that keep what stands before an answer, set task.records.turns to last (loss on "
        "the last turn alone), or use another template"
    )


def _shared(one: str, other: str) -> str:
    """Return the beginning that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _fixed_date_macro() -> str:
    """Return what gives a template the fixed date: the library takes no function for a template."""
    kinds = [*DIRECTIVES, *(f"-{kind}" for kind in DIRECTIVES)]
    filters = "".join(f"|replace('%{kind}', '{CHAT_DATE:%{kind}}')" for kind in kinds)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}"
