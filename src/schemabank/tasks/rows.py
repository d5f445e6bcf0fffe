"""Owns how rows of the user's own data are read: a file, a folder, a saved data set or the hub.

A file's ending says its format. Rows come one after another and can be read again, so that no more
than a few are in memory. Parquet, Arrow and what ``save_to_disk`` wrote are read by the library
``datasets``, without its cache. Texts are not: its JSON reader turns what looks like a date into a
time, its CSV reader drops cells such as ``NA`` and ``null``, and neither says in which line a file
is broken.
"""

import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError, first_line
from schemabank.common.files import csv_rows, json_lines, json_rows
from schemabank.config.task import RecordsSettings
from schemabank.tasks.columns import Row, plain_row
from schemabank.tasks.conversations import holds_chat
from schemabank.tasks.sources import load_data_set, load_saved_data_set, numbered_rows

SPLITS = ("train", "validation", "test")
HELD_OUT = {"val", "valid", "dev", "eval", "evaluation", "testing"}  # other names, no training rows
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk puts into its folder
PART = r"(-\d+-of-\d+)?"  # of a file's name, as the hub numbers the parts of a split

Rows = Iterable[Row]
Raw = Iterator[tuple[str, Mapping[str, object]]]  # rows as their format has them
Reader = Callable[[Path], Raw]


@dataclass(frozen=True)
class Again:
    """Rows that are read anew each time they are gone through."""

    read: Callable[[], Raw]

    def __iter__(self) -> Iterator[Row]:
        return (plain_row(where, row) for where, row in self.read())


def read_splits(settings: RecordsSettings) -> dict[str, Rows]:
    """Return the rows of every split that the data have.

    Raises:
        InputError: what cannot be found, an ending that says no format, or a split that is missing.
            A broken row raises it when it is read.
    """
    path = Path(settings.path)
    asked = {"validation": settings.validation_split, "test": settings.test_split}
    named = {split: name for split, name in asked.items() if name is not None}
    if path.is_file():
        for split, name in named.items():
            raise InputError(
                f"task.records.{split}_split is {name!r}, but {settings.path!r} is one file: name "
                "a folder with a file a split, or leave the split out"
            )
        return {"train": _rows_of([path])}
    named["train"] = settings.train_split
    if path.is_dir():
        is_saved = any((path / name).is_file() for name in SAVED)
        return _saved_splits(settings, named) if is_saved else _folder_splits(path, named)
    if ending_of(path) is not None and path.parent.is_dir():
        raise InputError(
            f"task.records.path is {settings.path!r}, but there is no such file: correct the name"
        )
    data = load_data_set(
        settings.path,
        settings.config,
        revision=settings.revision,
        sought="the data of task.records.path were looked for as a file, as a folder",
        otherwise="name a file or a folder",
    )
    return _data_set_splits(settings.path, data, named)


def ending_of(path: Path) -> str | None:
    """Return the ending of a file's name that says its format, or ``None``."""
    name = path.name.lower()
    return next((ending for ending in READERS if name.endswith(ending)), None)


def _rows_of(paths: Sequence[Path]) -> Rows:
    readers = [partial(_reader(path), path) for path in paths]
    return Again(lambda: (row for read in readers for row in read()))


def _reader(path: Path) -> Reader:
    ending = ending_of(path)
    if ending is None:
        raise InputError(
            f"the name {str(path)!r} does not say the file's format: allowed are the endings "
            f"{', '.join(READERS)}, rename the file or convert it"
        )
    return READERS[ending]


def _folder_splits(folder: Path, named: Mapping[str, str]) -> dict[str, Rows]:
    there = sorted(p for p in folder.iterdir() if p.is_file() and ending_of(p) is not None)
    stems = {re.sub(f"{PART}$", "", _stem(path)) for path in there}
    if there and named == {"train": "train"} and not stems & {*SPLITS}:
        if held := sorted(stems & HELD_OUT):
            raise InputError(
                f"{str(folder)!r} has no file named train, but {held[0]!r}, which is not to be "
                "trained on by its name: name the others train and this one validation or test, or "
                "name the splits in task.records"
            )
        return {"train": _rows_of(there)}  # files of other names are parts of one split
    wanted = _splits_to_read(named, stems)
    return {split: _rows_of(_split_files(folder, there, n)) for split, n in wanted.items()}


def _splits_to_read(named: Mapping[str, str], there: Collection[str]) -> dict[str, str]:
    """Names of the splits to read: those that were named, else those with the usual names."""
    usual = {split: split for split in SPLITS if split in there}
    return usual | dict(named)


def _split_files(folder: Path, there: Sequence[Path], name: str) -> list[Path]:
    """The file of a split, or its numbered parts."""
    own = [path for path in there if _stem(path) == name]
    if [path.name for path in own] == [f"{name}.jsonl", f"{name}.jsonl.gz"]:
        own = own[:1]  # the same file, packed
    parts = [p for p in there if p not in own and re.fullmatch(re.escape(name) + PART, _stem(p))]
    parts = [p for p in parts if _stem(p) != name]
    if len(own) + bool(parts) > 1:
        several = ", ".join(p.name for p in (*own, *parts))
        raise InputError(
            f"{str(folder)!r} holds several files for the split {name!r} ({several}): allowed is "
            "one, or its numbered parts, put the others elsewhere"
        )
    if not own and not parts:
        names = ", ".join(p.name for p in there) or "there are none"
        raise InputError(
            f"{str(folder)!r} holds no {name}.jsonl and no {name} with another ending that is "
            f"read ({', '.join(READERS)}), allowed are the names of its files ({names}): put the "
            "file there or name another split"
        )
    return own or parts


def _stem(path: Path) -> str:
    return path.name[: -len(ending_of(path) or "")]


def _saved_splits(settings: RecordsSettings, named: Mapping[str, str]) -> dict[str, Rows]:
    """The splits of a folder that ``save_to_disk`` made; it is mapped into memory."""
    data = load_saved_data_set(Path(settings.path))
    if hasattr(data, "column_names") and isinstance(data.column_names, list):  # a single split
        data = {settings.train_split: data}
    return _data_set_splits(settings.path, data, named)


def _data_set_splits(path: str, data: Any, named: Mapping[str, str]) -> dict[str, Rows]:  # noqa: ANN401 -- datasets has no types
    names = _splits_to_read(named, data)
    for split, name in names.items():
        if name not in data:
            raise InputError(
                f"task.records.{split}_split is {name!r}, but {path!r} has "
                f"{', '.join(map(repr, data))}: name one of those"
            )
    # An object's own columns are columns, as answers.text.
    tables = {split: data[name].with_format(None).flatten() for split, name in names.items()}
    return {
        split: Again(partial(numbered_rows, path, names[split], table))
        for split, table in tables.items()
    }


def _table_rows(kind: str, path: Path) -> Raw:
    """Read a file of tables in batches of rows.

    The builder is used itself: ``load_dataset`` counts its loads on the hub, for local files, too.
    """
    import datasets  # noqa: PLC0415 -- slow, and text is read without it
    from datasets.packaged_modules.arrow.arrow import Arrow  # noqa: PLC0415
    from datasets.packaged_modules.parquet.parquet import Parquet  # noqa: PLC0415

    builders = {"parquet": Parquet, "arrow": Arrow}
    try:
        # It wants a folder to lock, and streams past it: the cache may be full or read-only.
        with tempfile.TemporaryDirectory() as cache:
            builder = builders[kind](cache_dir=cache, data_files=escape(str(path.absolute())))
            rows = builder.as_streaming_dataset("train")
        for index, row in enumerate(rows):
            yield f"{path} row {index}", row
    except (OSError, ValueError, TypeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{str(path)!r} cannot be read as {kind.capitalize()} ({first_line(error)}): mend it, "
            "or rename it if it is something else"
        ) from error


def _json_lines(path: Path) -> Raw:
    return json_lines(path, finite=True)


TEXTS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": partial(json_rows, finite=True, is_row=holds_chat),
    ".csv": partial(csv_rows, strict=True),
    ".tsv": partial(csv_rows, strict=True, delimiter="\t"),
}
READERS: dict[str, Reader] = {
    **TEXTS,
    **{f"{ending}.gz": read for ending, read in TEXTS.items()},
    **{f".{kind}": partial(_table_rows, kind) for kind in ("parquet", "arrow")},
}
