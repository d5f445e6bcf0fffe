"""Owns the task records: data of the user's own, from files, a folder or the Hugging Face hub.

A row's columns fill two templates, the prompt and the target, or hold a chat whose turns of the
assistant are learned. Splits that the data lacks are carved out of the training rows by a hash of
the prompt, so equal prompts never part and more rows move none.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError
from schemabank.common.stored import chosen, kept
from schemabank.config.task import RecordsSettings, TaskSettings
from schemabank.tasks.base import (
    EXAMPLES,
    MOST_BYTES,
    Example,
    TaskData,
    hash_position,
    text_hash,
)
from schemabank.tasks.columns import (
    Row,
    as_text,
    check_scalar,
    column,
    dotted_in,
    is_null,
    references_in,
    text_in,
)
from schemabank.tasks.conversations import ALONE, BESIDE, PAIR, chat_in, is_chat
from schemabank.tasks.prompts import columns_in, fill
from schemabank.tasks.rows import SPLITS, Rows, read_splits
from schemabank.tasks.task import PROMPT, Task

HASH = "S16"  # so much of a hash that no two texts share it
ASKED = {"question", "answer"}  # columns of the default templates


def recognised(settings: TaskSettings) -> TaskSettings:
    """Fill in what the columns of the data say about themselves, where the settings say nothing.

    That is a chat in the column ``messages`` or ``conversations``, and the columns ``prompt`` and
    ``completion``, as text or as a chat. Rows with ``question`` and ``answer`` are those first.

    Raises:
        InputError: settings that a chat does not use.
    """
    own = settings.records
    if settings.prompt is None and own.messages is None and not own.has_own_target:
        splits = read_splits(own)
        (_, first) = next(iter(splits["train"]), ("", {}))
        settings = settings.model_copy(update=_form(first, own))
    if settings.records.messages is not None:
        if settings.target != "solution":
            raise InputError(
                f"task.target is {settings.target!r}, but a chat's target is the assistant's turn: "
                "allowed is 'solution', leave it out"
            )
        return settings.model_copy(update={"chat_template": True})
    if own.turns != "all":
        raise InputError(
            f"task.records.turns is {own.turns!r}, but the data has no column with a chat: name "
            "one in task.records.messages or leave this out"
        )
    return settings


def messages_in(columns: Mapping[str, object]) -> str | tuple[str, str] | None:
    """Return the column, or the two, with a chat under a usual name; ``None`` without a chat."""
    if set(columns) >= ASKED:
        return None
    alone = next((name for name in ALONE if is_chat(columns.get(name))), None)
    is_pair = set(columns) >= set(PAIR) and is_chat(columns[PAIR[1]])
    return alone or (PAIR if is_pair else None)


def _form(columns: Mapping[str, object], own: RecordsSettings) -> dict[str, object]:
    """Settings of the task for rows with such columns."""
    if (names := messages_in(columns)) is not None:
        return {"records": own.model_copy(update={"messages": names})}
    if set(columns) >= set(PAIR) and not set(columns) >= ASKED:
        prompt, completion = PAIR
        target = own.model_copy(update={"target": f"{{{completion}}}"})
        return {"prompt": f"{{{prompt}}}", "records": target}
    return {}


def load(settings: RecordsSettings, *, prompt: str) -> TaskData:
    """Load the data.

    Args:
        settings: where it is, and which columns mean what.
        prompt: template of the prompt, which every row must be able to fill; a chat has none.

    Every column is a field of the example, as text. An id is the column ``settings.id``, or the
    split and the row's number, ``records/train/3``.

    Raises:
        InputError: what cannot be read, a template's column that a row lacks, an id or a prompt
            that occurs in two places, other data than ``settings.digest`` says.
    """
    rows = read_splits(settings)
    found, names = _survey(rows)
    if settings.digest not in (None, found):
        raise InputError(
            f"the data of {settings.path!r} has changed since it was first used (task.records."
            f"digest is {settings.digest:.12}…, now it is {found:.12}…): restore it, or set "
            "task.records.digest to null to take it as it is"
        )
    form = Form(settings, prompt, names)
    examples = {
        split: kept(
            (form.example(row, f"records/{split}/{i}") for i, row in enumerate(r)),
            EXAMPLES,
            at_most=MOST_BYTES,
        )
        for split, r in rows.items()
    }
    data = _carve_splits(examples, settings)
    _check_distinct(data)
    return data


def data_digest(settings: RecordsSettings) -> str:
    """Return the SHA-256 of all rows, whatever file they come from.

    Data sets of the hub and of ``save_to_disk`` have an object's columns as columns of their own,
    so that rows with objects have another digest there than in a file. CSV has no numbers.
    """
    return _survey(read_splits(settings))[0]


def _survey(splits: Mapping[str, Rows]) -> tuple[str, tuple[str, ...]]:
    """Return the SHA-256 of all rows, as that of one JSON object, and the names of all columns."""
    found = hashlib.sha256()
    names: dict[str, dict[str, None]] = {split: {} for split in splits}
    begin = "{"
    for split in sorted(splits):
        found.update(f"{begin}{json.dumps(split)}: [".encode())
        for index, (_, columns) in enumerate(splits[split]):
            row = json.dumps(columns, sort_keys=True)
            found.update(f"{', ' if index else ''}{row}".encode())
            names[split].update(dict.fromkeys(columns))
        found.update(b"]")
        begin = ", "
    found.update(b"}")
    return found.hexdigest(), tuple(dict.fromkeys(n for own in names.values() for n in own))


@dataclass(frozen=True)
class Form:
    """How rows become examples.

    Attributes:
        settings: which columns mean what.
        prompt: template of the prompt.
        names: of all columns that some row has.
    """

    settings: RecordsSettings
    prompt: str
    names: Sequence[str]

    def example(self, row: Row, default_id: str) -> Example:
        """Return a row as an example."""
        make = self._of_columns if self.settings.messages is None else self._of_chat
        return make(row, default_id)

    def used(self) -> set[str]:
        """Return the columns that make an example, those that dotted names lead into included."""
        own = self.settings
        named = {name for name in (own.references, own.id, own.group, own.cluster) if name}
        if own.messages is None:
            named.update(*self._used.values())
        else:
            named |= {own.messages} if isinstance(own.messages, str) else {*own.messages}
            named.update(BESIDE)
        return {n for n in self.names if n in named or any(d.startswith(f"{n}.") for d in named)}

    @cached_property
    def _dotted(self) -> tuple[str, ...]:
        """The dotted names in the templates."""
        templates = (self.prompt, self.settings.target)
        found = (name for text in templates for name in dotted_in(text, self.names))
        return tuple(dict.fromkeys(found))

    @cached_property
    def _known(self) -> tuple[str, ...]:
        return (*self.names, *self._dotted)

    @cached_property
    def _used(self) -> dict[str, list[str]]:
        """The columns that each template names."""
        templates = {"task.prompt": self.prompt, "task.records.target": self.settings.target}
        return {setting: columns_in(text, self._known) for setting, text in templates.items()}

    def _of_columns(self, row: Row, default_id: str) -> Example:
        where, columns = row
        for setting, used in self._used.items():
            for name in used:
                check_scalar(row, name, setting)
        inner = {name: column(columns, name) for name in self._dotted}
        texts = _texts({**columns, **inner})
        texts |= self._empty_parts(columns, texts)
        solution = fill(self.settings.target, texts, where=where, names=self._known)
        question = fill(self.prompt, texts, where=where, names=self._known)
        if not any(texts[name].strip() for name in self._used["task.prompt"]):
            raise InputError(f"{where} has an empty prompt: fill the columns of task.prompt")
        if not solution.strip():
            raise InputError(
                f"{where} has an empty target: fill the columns of task.records.target"
            )
        return replace(self._named(row, default_id, solution), question=question, fields=texts)

    def _empty_parts(
        self, columns: Mapping[str, object], texts: Mapping[str, str]
    ) -> dict[str, str]:
        """The prompt's columns that are null in a row, as empty text beside others with text.

        An optional part of a prompt, such as Alpaca's ``input``, is null in tables and empty in
        CSV, and both are the same prompt.
        """
        asked, answered = (self._used[name] for name in ("task.prompt", "task.records.target"))
        if not any(texts.get(name, "").strip() for name in asked):
            return {}
        return {name: "" for name in asked if name not in answered and is_null(columns, name)}

    def _of_chat(self, row: Row, default_id: str) -> Example:
        names = self.settings.messages
        assert names is not None
        chat = chat_in(row, names, last_only=self.settings.turns == "last")
        read = {names} if isinstance(names, str) else set(names)
        texts = _texts({name: v for name, v in row[1].items() if name not in read})
        made = self._named(row, default_id, chat.answer)
        return replace(made, question=chat.prompt, fields=texts, turns=chat.turns, tools=chat.tools)

    def _named(self, row: Row, default_id: str, solution: str) -> Example:
        own = self.settings
        return Example(
            id=text_in(row, "id", own.id, otherwise=default_id),
            question="",
            solution=solution,
            answer=solution.strip(),
            group=text_in(row, "group", own.group, otherwise="all"),
            references=references_in(row, own.references),
            cluster=text_in(row, "cluster", own.cluster, otherwise=""),
        )


def _texts(columns: Mapping[str, object]) -> dict[str, str]:
    return {name: as_text(value) for name, value in columns.items() if value is not None}


def _carve_splits(examples: Mapping[str, Sequence[Example]], own: RecordsSettings) -> TaskData:
    """Fill the splits that the data lacks from its training rows."""
    train = examples["train"]
    ratios = {"test": own.test_ratio, "validation": own.validation_ratio}
    ratios = {split: ratio for split, ratio in ratios.items() if split not in examples}
    places = _split_positions(train)
    splits, start = dict(examples), 0.0
    for split, ratio in ratios.items():
        inside = np.flatnonzero((places >= start) & (places < start + ratio))
        splits[split] = chosen(train, inside)
        start += ratio
    splits["train"] = chosen(train, np.flatnonzero(places >= start))
    return TaskData(splits["train"], splits["validation"], splits["test"])


def _split_positions(examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """Places by which rows are set aside: one for prompts that differ in case and blanks alone."""
    # One pass, since each reads what lies in a file anew.
    numbers = ((_number(_form_of(e.question)), hash_position(e.question)) for e in examples)
    found = np.fromiter(numbers, [("form", np.uint64), ("place", np.float64)], len(examples))
    several = np.flatnonzero(_is_repeated(found["form"]))
    hashes = (text_hash(_form_of(examples[index].question)) for index in map(int, several))
    _, group = np.unique(np.fromiter(hashes, HASH, len(several)), return_inverse=True)
    # Numbers of rows in arrays, no texts: every prompt may occur several times.
    first = np.full(len(several), -1)
    for index, own in zip(map(int, several), group, strict=True):
        before = int(first[own])
        if before < 0 or examples[index].question < examples[before].question:
            first[own] = index
    places = found["place"].copy()
    places[several] = places[first[group]]
    return places


def _is_repeated(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each stands in another place, too."""
    ordered = np.sort(numbers)
    known = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(known):
        return np.zeros(len(numbers), dtype=bool)
    found = np.searchsorted(known, numbers).clip(max=len(known) - 1)  # less room than np.isin
    repeated: npt.NDArray[np.bool_] = known[found] == numbers
    return repeated


def _check_distinct(data: TaskData) -> None:
    """Refuse an id that occurs twice and a prompt in two splits.

    Numbers stand for the texts at first, and only texts with the same number are compared.
    """
    splits = {split: data.split(split) for split in SPLITS}
    numbers = [_numbers((e.id, e.question) for e in part) for part in splits.values()]
    ids = _repeated(*(part[:, 0] for part in numbers))
    prompts = _repeated(*(np.unique(part[:, 1]) for part in numbers))
    seen: set[str] = set()
    first: dict[str, str] = {}
    for split, part in splits.items() if ids or prompts else ():
        for example in part:
            if _number(example.id) in ids and example.id in seen:
                raise InputError(
                    f"the id {example.id!r} occurs twice: every row needs an id of its own, mend "
                    "the column that task.records.id names"
                )
            if _number(example.id) in ids:
                seen.add(example.id)
            if _number(example.question) not in prompts:
                continue
            other = first.setdefault(example.question, split)
            if other != split:
                raise InputError(
                    f"{example.id} in {split} has the same prompt as an example in {other}: no "
                    "prompt may stand in two splits, remove it from one"
                )


def _form_of(question: str) -> str:
    return " ".join(question.casefold().split())


def _number(text: str) -> int:
    """A number for a text, where keeping all texts would take too much memory."""
    return int.from_bytes(text_hash(text)[:8], "little")


def _numbers(texts: Iterable[tuple[str, str]]) -> npt.NDArray[np.uint64]:
    pairs = ((_number(first), _number(second)) for first, second in texts)
    return np.fromiter(pairs, np.dtype((np.uint64, 2)))


def _repeated(*parts: npt.NDArray[np.uint64]) -> frozenset[int]:
    """The numbers that occur more than once in all parts together."""
    found, counts = np.unique(np.concatenate(parts), return_counts=True)
    return frozenset(found[counts > 1].tolist())


def _load_task(settings: TaskSettings) -> TaskData:
    known = recognised(settings)
    return load(known.records, prompt=PROMPT if known.prompt is None else known.prompt)


TASK = Task(_load_task, metric="exact_match", data=("name", "prompt"))
