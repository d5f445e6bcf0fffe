"""Owns the task records: data of the user's own, as JSON lines or from the Hugging Face hub.

A row's columns fill two templates, the prompt and the target. Splits that the data lacks are carved
out of the training rows by a hash of the prompt, so equal prompts never part and more rows move
none.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError, did_you_mean
from schemabank.common.files import json_lines
from schemabank.config.task import RecordsSettings
from schemabank.tasks.base import Example, TaskData, hash_position
from schemabank.tasks.prompts import columns_in, fill
from schemabank.tasks.scoring.answers import plain_decimal
from schemabank.tasks.sources import load_data_set, numbered_rows
from schemabank.tasks.task import PROMPT, Task

SUFFIXES = (".jsonl", ".jsonl.gz")
SPLITS = ("train", "validation", "test")

Row = tuple[str, Mapping[str, object]]  # where it stands, for messages, and its columns
Rows = dict[str, list[Row]]  # by split


def load(settings: RecordsSettings, *, prompt: str) -> TaskData:
    """Load the data.

    Args:
        settings: where it is, and which columns mean what.
        prompt: template of the prompt, which every row must be able to fill.

    Every column is a field of the example, as text. An id is the column ``settings.id``, or the
    split and the row's number, ``records/train/3``.

    Raises:
        InputError: what cannot be read, a template's column that a row lacks, an id or a prompt
            that occurs in two places, other data than ``settings.digest`` says.
    """
    rows = _read_rows(settings)
    found = digest(rows)
    if settings.digest not in (None, found):
        raise InputError(
            f"the data of {settings.path!r} has changed since it was first used (task.records."
            f"digest is {settings.digest:.12}…, now it is {found:.12}…): restore it, or set "
            "task.records.digest to null to take it as it is"
        )
    names = tuple(dict.fromkeys(name for r in rows.values() for _, row in r for name in row))
    examples = {
        split: [
            _make_example(row, f"records/{split}/{i}", settings, prompt, names)
            for i, row in enumerate(r)
        ]
        for split, r in rows.items()
    }
    data = _carve_splits(examples, settings)
    _check_distinct(data)
    return data


def data_digest(settings: RecordsSettings) -> str:
    """Return the SHA-256 of all rows, whatever file or hub they come from."""
    return digest(_read_rows(settings))


def digest(rows: Rows) -> str:
    """Return the SHA-256 of rows."""
    plain = {split: [columns for _, columns in found] for split, found in rows.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_rows(settings: RecordsSettings) -> Rows:
    path = Path(settings.path)
    asked = {"validation": settings.validation_split, "test": settings.test_split}
    named = {split: name for split, name in asked.items() if name is not None}
    if path.is_file():
        for split, name in named.items():
            raise InputError(
                f"task.records.{split}_split is {name!r}, but {settings.path!r} is one file: name "
                "a folder with a file a split, or leave the split out"
            )
        return {"train": _file_rows(path)}
    named["train"] = settings.train_split
    if path.is_dir():
        there = {p.name.partition(".")[0] for p in path.iterdir() if p.name.endswith(SUFFIXES)}
        wanted = _splits_to_read(named, there)
        return {split: _file_rows(_split_file(path, n)) for split, n in wanted.items()}
    return _hub_rows(settings, named)


def _splits_to_read(named: Mapping[str, str], there: Collection[str]) -> dict[str, str]:
    """Names of the splits to read: those that were named, else those with the usual names."""
    usual = {split: split for split in SPLITS if split in there}
    return usual | dict(named)


def _split_file(folder: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    there = ", ".join(sorted(p.name for p in folder.iterdir() if p.name.endswith(SUFFIXES)))
    raise InputError(
        f"{str(folder)!r} holds no {name}.jsonl and no {name}.jsonl.gz, allowed are the names of "
        f"its files ({there or 'there are none'}): put the file there or name another split"
    )


def _file_rows(path: Path) -> list[Row]:
    return [_plain_row(where, row) for where, row in json_lines(path, finite=True)]


def _hub_rows(settings: RecordsSettings, named: Mapping[str, str]) -> Rows:
    data = load_data_set(
        settings.path,
        settings.config,
        revision=settings.revision,
        sought="the data of task.records.path were looked for as a file, as a folder",
        otherwise="name a file or a folder",
    )
    data = data.flatten()  # an object's own columns are columns, as answers.text
    names = _splits_to_read(named, data)
    for split, name in names.items():
        if name not in data:
            raise InputError(
                f"task.records.{split}_split is {name!r}, but {settings.path!r} has "
                f"{', '.join(map(repr, data))}: name one of those"
            )
    return {
        split: [_plain_row(*row) for row in numbered_rows(settings.path, name, data[name])]
        for split, name in names.items()
    }


def _plain_row(where: str, row: Mapping[str, object]) -> Row:
    """Leave out columns that JSON cannot hold; refuse text that is not valid Unicode."""
    known = {str(name): value for name, value in row.items() if _is_plain(value)}
    try:
        "".join(_as_text(value) for value in known.values() if value is not None).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds text that is not valid Unicode ({error}): mend it"
        ) from error
    return where, known


def _is_plain(value: object) -> bool:
    """Whether JSON can hold a value; data sets may have pictures and times, which it cannot."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(v) for name, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def _make_example(
    row: Row, default_id: str, settings: RecordsSettings, prompt: str, names: Sequence[str]
) -> Example:
    where, columns = row
    for setting, template in (("task.prompt", prompt), ("task.records.target", settings.target)):
        for name in columns_in(template, names):
            _check_scalar(row, name, setting)
    texts = {name: _as_text(value) for name, value in columns.items() if value is not None}
    target = fill(settings.target, texts, where=where, names=names)
    question = fill(prompt, texts, where=where, names=names)
    if not any(texts[name].strip() for name in columns_in(prompt, names)):
        raise InputError(f"{where} has an empty prompt: fill the columns of task.prompt")
    if not target.strip():
        raise InputError(f"{where} has an empty target: fill the columns of task.records.target")
    return Example(
        id=_text_in_column(row, "id", settings.id, otherwise=default_id),
        question=question,
        solution=target,
        answer=target.strip(),
        fields=texts,
        group=_text_in_column(row, "group", settings.group, otherwise="all"),
        references=_references_in(row, settings.references),
        cluster=_text_in_column(row, "cluster", settings.cluster, otherwise=""),
    )


def _check_scalar(row: Row, name: str, setting: str) -> None:
    """Refuse a value that is neither text nor a number where text is needed; a missing one passes.

    Raises:
        InputError: a list, an object, a truth value, or a number that is not finite, such as the
            NaN that pandas has for an empty cell.
    """
    where, columns = row
    value = columns.get(name)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    is_number |= isinstance(value, float) and math.isfinite(value)
    if value is None or isinstance(value, str) or is_number:
        return
    kind = {list: "a list", dict: "an object", bool: "a truth value"}.get(type(value), "no number")
    raise InputError(
        f"{where} has {kind}, {value!r:.60}, in column {name!r}, which {setting} names: allowed is "
        "text or a number, write it as text or leave the row out"
    )


def _references_in(row: Row, name: str | None) -> tuple[str, ...]:
    if name is None:
        return ()
    where, columns = row
    value: Any = columns.get(name)
    if isinstance(value, dict):
        raise InputError(
            f"{where} has an object in column {name!r} (task.records.references): a text or a list "
            f"of texts is allowed, perhaps one of its own columns ({', '.join(value)})"
        )
    values = value if isinstance(value, list) else [value]
    for each in values:
        _check_scalar((where, {name: each}), name, "task.records.references")
    texts = tuple(_as_text(v) for v in values if v is not None and _as_text(v).strip())
    if not texts:
        guess = "" if name in columns else did_you_mean(name, columns)
        raise InputError(
            f"{where} has no references in column {name!r} (task.records.references){guess}: a "
            "text or a list of texts is allowed, add one"
        )
    return texts


def _text_in_column(row: Row, setting: str, name: str | None, *, otherwise: str) -> str:
    if name is None:
        return otherwise
    where, columns = row
    value = columns.get(name)
    _check_scalar(row, name, f"task.records.{setting}")
    if value is None or not _as_text(value):
        raise InputError(
            f"{where} has no column {name!r}, which task.records.{setting} names"
            f"{did_you_mean(name, columns)}: allowed are {', '.join(map(repr, columns))}, add the "
            "column or name another"
        )
    return _as_text(value)


def _as_text(value: object) -> str:
    if isinstance(value, float):
        return plain_decimal(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _carve_splits(examples: Mapping[str, list[Example]], settings: RecordsSettings) -> TaskData:
    """Fill the splits that the data lacks from its training rows."""
    train = list(zip(examples["train"], _split_positions(examples["train"]), strict=True))
    splits = dict(examples)
    start = 0.0
    ratios = {"test": settings.test_ratio, "validation": settings.validation_ratio}
    for split, ratio in ratios.items():
        if split not in splits:
            splits[split] = [e for e, place in train if start <= place < start + ratio]
            start += ratio
    splits["train"] = [e for e, place in train if place >= start]
    return TaskData(**splits)


def _split_positions(examples: Sequence[Example]) -> list[float]:
    """Places by which rows are set aside: one for prompts that differ in case and blanks alone."""
    forms = [" ".join(e.question.casefold().split()) for e in examples]
    first: dict[str, str] = {}
    for form, example in zip(forms, examples, strict=True):
        first[form] = min(first.get(form, example.question), example.question)
    return [hash_position(first[form]) for form in forms]


def _check_distinct(data: TaskData) -> None:
    ids: set[str] = set()
    splits: dict[str, str] = {}
    for split in SPLITS:
        for example in data.split(split):
            if example.id in ids:
                raise InputError(
                    f"the id {example.id!r} occurs twice: every row needs an id of its own, mend "
                    "the column that task.records.id names"
                )
            ids.add(example.id)
            first = splits.setdefault(example.question, split)
            if first != split:
                raise InputError(
                    f"{example.id} in {split} has the same prompt as an example in {first}: no "
                    "prompt may stand in two splits, remove it from one"
                )


TASK = Task(
    lambda settings: load(
        settings.records, prompt=PROMPT if settings.prompt is None else settings.prompt
    ),
    metric="exact_match",
    data=("name", "prompt"),
)
