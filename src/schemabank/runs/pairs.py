"""What Python programs give for examples: pairs of prompt and completion, their columns, or chats.

Without these checks Python would accept much else: iterating over a data set or a dictionary gives
its column names, and a text of two characters unpacks into two.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, Union, cast

from schemabank.common.errors import InputError
from schemabank.common.stored import kept
from schemabank.config.datacolumns import contexts_of, known_pair, may_be_answered, other_training
from schemabank.tasks import Example
from schemabank.tasks.base import EXAMPLES, MOST_BYTES
from schemabank.tasks.conversations import ALONE, PAIR, chat_in, is_chat

if TYPE_CHECKING:
    import datasets

# A text does not go with "|", and `datasets` is not imported for a name.
Examples: TypeAlias = Union[Sequence[tuple[str, str] | Mapping[str, object]], "datasets.Dataset"]
"""Pairs of texts; or dictionaries or a ``datasets.Dataset`` with the columns ``prompt`` and
``completion``, or with a chat in ``messages`` or ``conversations``."""
TRAINING = "training"  # what examples are for, unless something else is said
COLUMNS = ("prompt", "completion")  # as TRL calls them
ALLOWED = (
    'allowed are a list of pairs, [("2 + 2 = ", "4"), …], and a list of dictionaries or a '
    "datasets.Dataset with the columns prompt and completion, both text, or with a chat in "
    "messages or conversations"
)


def as_examples(examples: object, *, purpose: str = TRAINING) -> Sequence[Example]:
    """Return pairs or chats as examples; those that are too large for memory lie in a file.

    Args:
        examples: a sequence of pairs of texts, or of mappings with the columns ``prompt`` and
            ``completion``, or with a chat in the column ``messages`` or ``conversations``, or in
            both ``prompt`` and ``completion``, as TRL has it; or a ``datasets.Dataset`` that has
            these columns.
        purpose: what they are for, which ids and messages name.

    Raises:
        InputError: anything else.
    """
    rows = _rows_of(examples, purpose)
    first = next(iter(rows), None)
    names = _chat_columns(first) if isinstance(first, Mapping) else None
    made = _pairs(rows, purpose) if names is None else _chats(rows, names, purpose)
    found = kept(made, EXAMPLES, at_most=MOST_BYTES)
    if not found:
        raise InputError(f"there are 0 {purpose} examples, allowed is at least 1: {ALLOWED}")
    return found


def _pairs(rows: Iterable[object], purpose: str) -> Iterator[Example]:
    for index, row in enumerate(rows):
        prompt, completion = _checked_pair(f"{purpose} example {index}", row)
        own = name_of(index, purpose)
        yield Example(id=own, question=prompt, solution=completion, answer=completion)


def _chats(rows: Iterable[object], names: str | tuple[str, str], purpose: str) -> Iterator[Example]:
    return (_chat_example(index, row, names, purpose) for index, row in enumerate(rows))


def name_of(index: int, purpose: str = TRAINING) -> str:
    """What an example is called, by which a training set's tags are drawn."""
    return f"{'examples' if purpose == TRAINING else purpose}/{index}"


def _rows_of(examples: object, purpose: str) -> Iterable[object]:
    """The rows of a container that can be gone through again."""
    if isinstance(examples, Sequence) and not isinstance(examples, str | bytes):
        return examples
    if _is_data_set(examples):
        return cast(Iterable[object], examples)
    kind, hint = type(examples).__name__, _container_hint(examples)
    raise InputError(f"the {purpose} examples are a {kind}: {ALLOWED}{hint}")


def _chat_columns(row: Mapping[str, object]) -> str | tuple[str, str] | None:
    """The column or the two columns of a row that hold a chat; pairs of texts go first."""
    if set(row) >= set(PAIR):
        return PAIR if is_chat(row[PAIR[1]]) else None
    return next((name for name in ALONE if is_chat(row.get(name))), None)


def _chat_example(index: int, row: object, names: str | tuple[str, str], purpose: str) -> Example:
    where = f"{purpose} example {index}"
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is {row!r:.80}, but others are chats: {ALLOWED}")
    chat = chat_in((where, row), names, last_only=False)
    return Example(
        id=name_of(index, purpose),
        question=chat.prompt,
        solution=chat.answer,
        answer=chat.answer,
        turns=chat.turns,
        tools=chat.tools,
    )


def _checked_pair(where: str, row: object) -> tuple[str, str]:
    if isinstance(row, Mapping):
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise _other_columns(where, [str(name) for name in row], missing[0])
        found: Sequence[object] = [row[name] for name in COLUMNS]
    elif isinstance(row, tuple | list) and len(row) == len(COLUMNS):
        found = row
    else:
        raise InputError(f"{where} is {row!r:.80}: {ALLOWED}")
    prompt, completion = found
    return _checked_text(where, "prompt", prompt), _checked_text(where, "completion", completion)


def _other_columns(where: str, columns: Sequence[str], missing: str) -> InputError:
    """The error of a row that is no pair: what it is, or which columns to rename or to join."""
    found = f"{where} has the columns {', '.join(columns):.200} and no {missing}"
    pair, other = known_pair(columns), other_training(columns)
    if pair is None and other is not None:
        more = "; or, if one column answers another, make pairs of them"
        return InputError(f"{found}: {other}{more if may_be_answered(columns) else ''}")
    if pair is not None:
        asked, answered = map(repr, pair)
        about = " and ".join(map(repr, contexts_of(pair[0], columns)))
        # Renamed, they would be trained on without what is asked about; a name may be taken, too.
        if about or {*columns} & {*COLUMNS} - {*pair}:
            beside = f", with {about} in the prompt" if about else ""
            return InputError(f"{found}: {ALLOWED}; make pairs of {asked} and {answered}{beside}")
        names = " and ".join(
            f"{a!r} to {b!r}" for a, b in zip(pair, COLUMNS, strict=True) if a != b
        )
        return InputError(f"{found}: {ALLOWED}; rename {names}")
    return InputError(f"{found}: {ALLOWED}; rename its columns, or make pairs of them")


def _checked_text(where: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InputError(
            f"the {name} of {where} is {value!r:.80}, a {kind}: allowed is text, "
            "write it as one or leave the example out"
        )
    if not value.strip() and name == "completion":
        raise InputError(
            f"the completion of {where} is empty: allowed is text, fill it or leave the example out"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {name} of {where} is no Unicode ({error}): mend it") from error
    return value


def _is_data_set(examples: object) -> bool:
    """Whether it is a table of ``datasets``, which only an imported package can have made."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(examples, library.Dataset)


def _container_hint(examples: object) -> str:
    """What to do with other containers of examples, for the error."""
    if isinstance(examples, Mapping) and "train" in examples:
        return '; name one of its splits, such as data["train"]'
    if hasattr(examples, "to_dict") and hasattr(examples, "columns"):
        return '; of a table, give table.to_dict("records")'
    if hasattr(examples, "__next__"):
        return "; make a list of it"
    if (library := sys.modules.get("datasets")) and isinstance(examples, library.IterableDataset):
        return (
            "; a streamed one has no numbers to draw examples by: make a table on disk of it by "
            "datasets.Dataset.from_generator(streamed.__iter__)"
        )
    return ""
