"""What ``Tuner.train`` takes for examples: pairs of prompt and completion, or columns of that name.

Without these checks Python would accept much else: iterating over a data set or a dictionary gives
its column names, and a text of two characters unpacks into two.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from schemabank.common.errors import InputError

COLUMNS = ("prompt", "completion")  # as TRL calls them
ALLOWED = (
    'allowed are a list of pairs, [("2 + 2 = ", "4"), …], and a list of dictionaries or a '
    "datasets.Dataset with the columns prompt and completion, both text"
)


def as_pairs(examples: object) -> list[tuple[str, str]]:
    """Return examples as pairs of prompt and completion.

    Args:
        examples: a sequence of pairs of texts, or of mappings with the columns ``prompt`` and
            ``completion``, or a ``datasets.Dataset`` that has them.

    Raises:
        InputError: anything else.
    """
    if isinstance(examples, Sequence) and not isinstance(examples, str | bytes):
        rows: Iterable[object] = examples
    elif _is_data_set(examples):
        rows = cast(Iterable[object], examples)
    else:
        kind, hint = type(examples).__name__, _container_hint(examples)
        raise InputError(f"the training examples are a {kind}: {ALLOWED}{hint}")
    pairs = [_checked_pair(index, row) for index, row in enumerate(rows)]
    if not pairs:
        raise InputError(f"there are 0 training examples, allowed is at least 1: {ALLOWED}")
    return pairs


def _checked_pair(index: int, row: object) -> tuple[str, str]:
    if isinstance(row, Mapping):
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise InputError(
                f"training example {index} has the columns {', '.join(map(str, row)):.200} and no "
                f"{missing[0]}: {ALLOWED}; rename its columns"
            )
        found: Sequence[object] = [row[name] for name in COLUMNS]
    elif isinstance(row, tuple | list) and len(row) == len(COLUMNS):
        found = row
    else:
        raise InputError(f"training example {index} is {row!r:.80}: {ALLOWED}")
    prompt, completion = found
    return _checked_text(index, "prompt", prompt), _checked_text(index, "completion", completion)


def _checked_text(index: int, name: str, value: object) -> str:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InputError(
            f"the {name} of training example {index} is {value!r:.80}, a {kind}: allowed is text, "
            "write it as one or leave the example out"
        )
    if not value.strip() and name == "completion":
        raise InputError(
            f"the completion of training example {index} is empty: allowed is text, fill it or "
            "leave the example out"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {name} of training example {index} is no Unicode ({error}): mend it"
        ) from error
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
    return ""
