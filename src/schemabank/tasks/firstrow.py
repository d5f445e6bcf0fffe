"""Owns the look into the user's own data before there is a configuration for them.

The first row says which columns there are and whether they hold a chat. A configuration is tried on
it before it is given out, so that `schemabank train` does not refuse what `schemabank init` wrote.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.config.start import RECORDS, Start, starting_config, starting_yaml
from schemabank.config.task import RecordsSettings
from schemabank.tasks.columns import Row
from schemabank.tasks.records import Form, messages_in
from schemabank.tasks.rows import ending_of, read_splits
from schemabank.tasks.task import PROMPT

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a name, or an owner and a name


@dataclass(frozen=True)
class Fitted:
    """A first configuration.

    Attributes:
        text: the configuration.
        unused: columns of the first row that no template, and no setting of chats, takes.
    """

    text: str
    unused: tuple[str, ...] = ()


def fitted_yaml(start: Start, *, file: str = "config.yaml") -> Fitted:
    """Return a first configuration, fitted to the first row of the data if they are here.

    Args:
        start: what it is for; its columns and chat are filled in.
        file: the name that it will have.

    Raises:
        InputError: as :func:`starting_yaml`; the data cannot be read, hold no row, or their first
            row does not fit the templates.
    """
    row = first_row(start.data) if start.data and start.task in {None, RECORDS} else None
    if row is None:
        return Fitted(starting_yaml(start, file=file))
    _, columns = row
    messages = None if start.prompt or start.target else messages_in(columns)
    textless = tuple(name for name, v in columns.items() if isinstance(v, list | dict | bool))
    known = replace(start, columns=tuple(columns), textless=textless, messages=messages)
    text = starting_yaml(known, file=file)
    task = starting_config(text).task
    prompt = PROMPT if task.prompt is None else task.prompt
    form = Form(task.records, prompt, tuple(columns))
    form.example(row, "the first row")
    used = form.used()
    return Fitted(text, tuple(name for name in columns if name not in used))


def first_row(data: str) -> Row | None:
    """Return the first row that is trained on; ``None`` where the hub alone may have the data.

    Raises:
        InputError: the data are not here and their name is no hub id, they cannot be read, or they
            hold no row.
    """
    path = Path(data)
    if not path.exists():
        if HUB_ID.fullmatch(data) and ending_of(path) is None:
            return None
        raise InputError(
            f"--data {data!r}: there is no such file or folder, allowed are these and a hub data "
            "set's id such as openai/gsm8k: correct the name"
        )
    for where, columns in read_splits(RecordsSettings(path=data))["train"]:
        if columns:
            return where, columns
        raise InputError(f"{where} has no column, allowed is at least one: name other data")
    raise InputError(f"--data {data!r} holds no row, allowed is at least one: name other data")
