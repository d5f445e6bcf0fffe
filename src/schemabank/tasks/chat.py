"""Owns the chat template: it puts a prompt into the user's turn, or finds a chat's learned turns.

A template is a program that came with the tokenizer. It may refuse a chat, leave text out, or write
today's date; each would change what is asked without a word.

Where a learned turn begins and ends is found by rendering: a chat up to the turn, with the
template's invitation to answer, and up to its end. Both must begin the whole chat's text, word for
word, or the turn has no place in it. So a template needs no ``{% generation %}``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError

from schemabank.common.errors import InputError, first_line
from schemabank.tasks.base import Turn

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# What a template gets that asks for today: another date would give other prompts every day. It is
# the one that Llama 3's template writes where it cannot ask.
CHAT_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxX"  # of strftime
# What a program in Jinja can end in, beside its own refusal.
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
SHOWN = 60  # characters of a prompt or a rendered chat in a message
PROBE = (Turn("user", "question"), Turn("assistant", "Zq7xW"))  # no template writes such a word


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


def chat_pieces(
    turns: Sequence[Turn], tokenizer: "PreTrainedTokenizerBase", *, name: str
) -> list[Piece]:
    """Return a chat's text in pieces, which joined are the text that its template writes.

    Args:
        turns: the chat; its last turn is a learned one.
        tokenizer: has the template.
        name: of the example, for messages.

    Returns:
        Pieces that take turns: what is given, then for a learned turn what is said and, where the
        template writes one, the mark that ends it. White space behind the last mark is left out.

    Raises:
        InputError: the template refuses the chat, leaves out or changes what a learned turn says,
            or writes the beginning of the chat in another way than the whole.
    """
    lead, end = _frame(tokenizer, str(tokenizer.chat_template))
    whole, place = _render(turns, tokenizer, name), 0
    _check_shown(turns, whole, name)
    pieces: list[Piece] = []
    for index, turn in enumerate(turns):
        if not turn.learned:
            continue
        before = _render(turns[:index], tokenizer, name, invites=True)
        upto = _render(turns[: index + 1], tokenizer, name)
        if not (upto.startswith(before) and whole.startswith(upto.rstrip())):
            raise InputError(_no_prefix(name, index, before, upto, whole))
        start = len(before) + len(lead) * upto.startswith(before + lead)
        pieces.append(Piece(whole[place:start], "given"))
        said = upto[start:].rstrip()
        ends = bool(end) and said.endswith(end)
        said = said.removesuffix(end)
        if not is_within(turn.content, said):
            raise InputError(
                f"the tokenizer's chat template leaves out or changes what the assistant says in "
                f"turn {index + 1} of {name} ({turn.content!r:.{SHOWN}} becomes "
                f"{said!r:.{SHOWN}}): allowed are templates that hold it, mend the template or "
                "the turn"
            )
        pieces += [Piece(said, "said"), *([Piece(end, "end")] if ends else [])]
        place = start + len(said) + len(end) * ends
    return pieces


def is_within(part: str, whole: str) -> bool:
    """Return whether a text holds another one, whatever the white space."""
    return part.strip() in whole or " ".join(part.split()) in " ".join(whole.split())


def _check_shown(turns: Sequence[Turn], whole: str, name: str) -> None:
    """Refuse a template that leaves out what is said to the assistant.

    Some know no tool and no developer, and say nothing about it. What the assistant itself said
    earlier may be shortened: many templates leave out what it thought.
    """
    for number, turn in enumerate(turns, start=1):
        if turn.role == "assistant" or is_within(turn.content, whole):
            continue
        if json.dumps(turn.content, ensure_ascii=False) in whole:  # as Llama 3's writes a tool's
            continue
        raise InputError(
            f"the tokenizer's chat template leaves out or changes turn {number} of {name}, where "
            f"{turn.role} says {turn.content!r:.{SHOWN}}: allowed are chats whose roles and order "
            "the template knows, write the turn into another one or leave the row out"
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
    turns: Sequence[Turn], tokenizer: "PreTrainedTokenizerBase", name: str, *, invites: bool = False
) -> str:
    """Render turns of a chat, with the invitation to answer where it is asked for."""
    return _rendered(
        turns,
        tokenizer,
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
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _fixed_date_macro() + template
        return str(
            tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=invites
            )
        )
    except (*FAULTS, RecursionError) as error:
        raise InputError(
            f"the tokenizer's chat template cannot {what} "
            f"({type(error).__name__}: {first_line(error)}): {mend}"
        ) from error


def _no_prefix(name: str, index: int, before: str, upto: str, whole: str) -> str:
    """Say where the text of a chat's beginning and that of more of it part."""
    short, long = (before, upto) if not upto.startswith(before) else (upto, whole)
    pairs = enumerate(zip(short + "\0", long + "\0", strict=False))
    place = next((i for i, (a, b) in pairs if a != b), 0)
    return (
        f"the tokenizer's chat template writes {name} up to turn {index + 1} in another way once "
        f"more follows ({short[place:]!r:.{SHOWN}} becomes {long[place:]!r:.{SHOWN}}), so that the "
        "turn has no place of its own: allowed are templates that only append, set "
        "task.records.turns to last (loss on the last turn alone), or use a template that keeps "
        "earlier turns as they are"
    )


def _fixed_date_macro() -> str:
    """Return what gives a template the fixed date: the library takes no function for a template."""
    kinds = [*DIRECTIVES, *(f"-{kind}" for kind in DIRECTIVES)]
    filters = "".join(f"|replace('%{kind}', '{CHAT_DATE:%{kind}}')" for kind in kinds)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}"
