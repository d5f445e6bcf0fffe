"""Writing files: JSON, JSON lines and tensors, with a full disk an error like any other."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from schemabank.errors import first_line


@contextmanager
def writing_tensors(path: Path) -> Iterator[Path]:
    """Let safetensors and tokenizers write, and a full disk be an error like any other of files.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield path
    except Exception as error:
        # Errors of files are plain Exceptions where tokenizers writes.
        if not isinstance(error, SafetensorError) and type(error) is not Exception:
            raise
        raise OSError(
            f"cannot write {str(path)!r} ({first_line(error)}): free some space, or write elsewhere"
        ) from error


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write one JSON object, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
