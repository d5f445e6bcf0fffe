"""Where tasks find their data: the folder in ``SCHEMABANK_DATA``, or the Hugging Face hub.

The hub's libraries honour ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_TOKEN``.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError, first_line
from schemabank.common.hub import Cache, cause_and_mend, reach_hub
from schemabank.common.quiet import DATASETS, bars_on_terminals_only
from schemabank.common.waiting import waiting

DATA_VARIABLE = "SCHEMABANK_DATA"
NOT_SET = f"{DATA_VARIABLE} (not set)"


def data_folder() -> Path | None:
    """Return the folder in ``SCHEMABANK_DATA``; ``None`` where it is not set or empty."""
    folder = os.environ.get(DATA_VARIABLE)
    return Path(folder) if folder else None


def check_files(what: str, paths: Sequence[Path], *, put: str, hub_id: str) -> None:
    """Find out whether a task's files are all in the folder in ``SCHEMABANK_DATA``.

    Args:
        what: the data set's name.
        paths: its files.
        put: which files to put there, as an order.
        hub_id: where the hub has it.

    Raises:
        InputError: some are missing; all of these are named.
    """
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{what} is not in {DATA_VARIABLE}: no file {' and no file '.join(missing)}; {put}, or "
            f"unset {DATA_VARIABLE} to read {hub_id!r} from the Hugging Face hub"
        )


def load_data_set(
    hub_id: str,
    config: str | None = None,
    *,
    revision: str | None = None,
    sought: str,
    otherwise: str,
) -> Any:  # noqa: ANN401 -- datasets has no types
    """Load all splits of a data set; a long wait is announced with its name.

    Args:
        hub_id: owner and name.
        config: which of its configurations; ``None`` for the only one.
        revision: commit, branch or tag; ``None`` for the newest.
        sought: what was looked for and where, as the beginning of a sentence.
        otherwise: what else would do, as the end of one.

    Raises:
        InputError: there is no such data set, or it cannot be loaded.
    """
    import datasets  # noqa: PLC0415 -- slow, and files are read without it

    kinds = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    reach_hub()
    try:
        with (
            waiting(f"loading {hub_id} from the Hugging Face hub", lambda _: None),
            bars_on_terminals_only(datasets, DATASETS),
        ):
            return datasets.load_dataset(hub_id, config, revision=revision)
    except kinds as error:
        from schemabank.common.memory import is_out_of_memory  # noqa: PLC0415 -- needs PyTorch

        if is_out_of_memory(error):
            raise
        cache = Cache("HF_DATASETS_CACHE", Path(datasets.config.HF_DATASETS_CACHE))
        cause, mend = cause_and_mend(error, cache)
        raise InputError(
            f"{sought} and on the Hugging Face hub as {hub_id!r}, but {cause}: {mend}, or "
            f"{otherwise}"
        ) from error


def load_saved_data_set(folder: Path) -> Any:  # noqa: ANN401 -- datasets has no types
    """Load what ``save_to_disk`` wrote, one split or all of them, mapped into memory.

    Raises:
        InputError: it cannot be loaded.
    """
    import datasets  # noqa: PLC0415 -- slow, and files are read without it

    kinds = (OSError, ValueError, TypeError, KeyError, datasets.exceptions.DatasetsError)
    try:
        with bars_on_terminals_only(datasets, DATASETS):
            return datasets.load_from_disk(str(folder))
    except kinds as error:
        raise InputError(
            f"{str(folder)!r} looks like a folder that save_to_disk made, but it cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}): save it again, or name another"
        ) from error


def numbered_rows(hub_id: str, split: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a split on the hub, each behind its place, for messages."""
    for index, row in enumerate(rows):
        yield f"{hub_id} {split} row {index}", row
