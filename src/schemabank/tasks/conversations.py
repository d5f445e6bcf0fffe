"""Owns chats as rows hold them: ``role`` and ``content``, or ShareGPT's ``from`` and ``value``.

Both become turns of one form. What a template could show but is not read here, such as thoughts in
a column of their own, is refused, since a model would learn another chat than the row's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from schemabank.common.errors import InputError, did_you_mean
from schemabank.tasks.base import Turn
from schemabank.tasks.columns import Row, column
from schemabank.tasks.toolcalls import TOOLS, calls_in, calls_of, extra_in, tools_in

ALONE = ("messages", "conversations")  # usual names of a column with a whole chat
SYSTEM = "system"  # the role, and the usual name of a column with what it says
BESIDE = (SYSTEM, TOOLS)  # columns of their own that belong to the chat
PAIR = ("prompt", "completion")  # as TRL calls what goes before and what is learned
# The names of roles that axolotl knows, too.
ROLES = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
}
TURN, SHARED = ("role", "content"), ("from", "value")  # the keys of a turn in each form
UNREAD = ("function_call", "reasoning_content", "thinking")
ALLOWED = (
    'allowed is a list of turns such as {"role": "user", "content": "Hello"} (or "from" and '
    '"value"), with text in each'
)


@dataclass(frozen=True)
class Chat:
    """The turns of a row, up to the last one that is learned, and its tools."""

    turns: tuple[Turn, ...]
    tools: str = ""

    @property
    def prompt(self) -> str:
        """What is said before the last turn: texts alone, for splits and taggers."""
        return "\n\n".join(map(_words, self.turns[:-1]))

    @property
    def answer(self) -> str:
        """What the last turn says; of a turn that only calls tools, the calls as JSON."""
        return _words(self.turns[-1])


def is_chat(value: object) -> TypeGuard[list[Mapping[str, object]]]:
    """Whether a column looks like a chat: a list of objects."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def holds_chat(columns: Mapping[str, object]) -> bool:
    """Whether an object is a row with a chat: one of its lists has turns, which are no rows.

    Rows may have columns of these names too, but then they do not name who speaks.
    """
    first = [value[0] for value in columns.values() if is_chat(value)]
    return any(
        {*keys} <= set(turn) and turn[keys[0]] in [*ROLES]
        for turn in first
        for keys in (TURN, SHARED)
    )


def chat_in(row: Row, names: str | Sequence[str], *, last_only: bool) -> Chat:
    """Read the chat in a row.

    Args:
        row: the row.
        names: the column with the chat, or two: what goes before, and what is learned.
        last_only: whether the last turn of the assistant alone is learned, not all of them.

    Raises:
        InputError: the column holds something else, or nothing to learn or to learn it from.
    """
    where, columns = row
    parts = [names] if isinstance(names, str) else list(names)
    turns = [turn for name in parts[:-1] for turn in _turns_in(row, name, learns=False)]
    turns += _turns_in(row, parts[-1], learns=True)
    turns = [*_system_in(columns, turns), *turns]
    learned = [i for i, turn in enumerate(turns) if turn.learned]
    if not learned or not any(_words(turn).strip() for turn in turns[: learned[0]]):
        lack = "no turn before the first" if learned else "no turn of the assistant"
        raise InputError(
            f"{where} has {lack} that is to be learned, in column {parts[-1]!r}: allowed are chats "
            "with a turn of the assistant behind another one, add it or leave the row out"
        )
    kept = turns[: learned[-1] + 1]  # what follows is seen by nothing that is learned
    if last_only:
        kept = [*(turn._replace(learned=False) for turn in kept[:-1]), kept[-1]]
    return Chat(tuple(kept), tools_in(row))


def _words(turn: Turn) -> str:
    """What a turn says as text: what it writes, or else its calls of tools."""
    return turn.content or calls_of(turn.extra)


def _system_in(columns: Mapping[str, object], turns: Sequence[Turn]) -> list[Turn]:
    """The system turn that stands in a column beside a chat that has none, as axolotl reads it."""
    text = columns.get(SYSTEM)
    if not isinstance(text, str) or not text.strip() or turns[0].role in {SYSTEM, "developer"}:
        return []
    return [Turn(SYSTEM, text)]


def _turns_in(row: Row, name: str, *, learns: bool) -> list[Turn]:
    where, columns = row
    value = column(columns, name)
    if not isinstance(value, list) or not value:
        guess = "" if name in columns else did_you_mean(name, columns)
        raise InputError(
            f"{where} has {value!r:.60} in column {name!r} (task.records.messages){guess}: "
            f"{ALLOWED}"
        )
    return [_turn(where, i, turn, learns=learns) for i, turn in enumerate(value, start=1)]


def _turn(where: str, number: int, turn: object, *, learns: bool) -> Turn:
    place = f"{where}, turn {number}"
    if not isinstance(turn, Mapping):
        raise InputError(f"{place} is {turn!r:.60}: {ALLOWED}")
    role = turn.get("role") or turn.get("from")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(
            f"{place} has the role {role!r:.60}: allowed are {', '.join(ROLES)}, rename it"
        )
    for unread in UNREAD:
        if turn.get(unread):
            raise InputError(
                f"{place} has {unread}, which is not read: allowed are turns of text, write it as "
                "text or leave the row out"
            )
    content = turn.get("content", turn.get("value"))
    calls = calls_in(place, ROLES[role], turn)
    text = "" if calls and content is None else _text(place, content)
    is_learned = learns and ROLES[role] == "assistant" and _weight(place, turn)
    if is_learned and not text.strip() and not calls:
        raise InputError(f"{place} is an empty turn of the assistant: fill it or leave it out")
    return Turn(ROLES[role], text, is_learned, extra_in(ROLES[role], turn, calls))


def _weight(place: str, turn: Mapping[str, object]) -> bool:
    """Whether a turn itself says that it is learned: OpenAI's ``weight``, axolotl's ``train``."""
    for name in ("weight", "train", "training"):
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise InputError(
                f"{place} has {name} {value!r:.60}: allowed are 0 (the turn is not learned) and 1"
            )
        return bool(value)
    return True


def _text(place: str, content: object) -> str:
    """The text of a turn, which may come as a list of parts."""
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise InputError(f"{place} says {content!r:.60}, which is no text: {ALLOWED}")
    return content
