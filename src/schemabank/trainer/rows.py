"""Which example each row of a batch is: a step's tags or experts depend on it.

The training data get a column with the example's number, which the collator takes out of the rows
and puts into the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch

from schemabank.common.errors import InputError
from schemabank.config.methods import ExpertsSettings
from schemabank.config.settings import RunConfig
from schemabank.runs.pairs import as_examples, name_of
from schemabank.tasks import Example

INDEX = "example_index"
OR = "or set tags.tagger to 'none', or experts.routing to 'random' or 'learned'"


def examples_by_number(method: RunConfig, rows: Any) -> Sequence[Example]:  # noqa: ANN401
    """Return the training data as what a method goes by, before a trainer makes tokens of them.

    Taggers see the texts, and experts that are given by a hash go by the examples' names alone.
    Any other method goes by none.

    Raises:
        InputError: there are tags, and the data are neither pairs of texts nor chats.
    """
    if method.uses("experts") and method.own(ExpertsSettings).routing == "hash":
        _check_data(rows)
        return [
            Example(id=name_of(n), question="", solution="", answer="") for n in range(len(rows))
        ]
    if not method.is_tagged:
        return []
    try:
        return as_examples(rows)
    except InputError as error:
        raise InputError(
            f"tags.tagger is {method.tags.tagger!r}, which needs the examples' texts ({error}); or "
            "set tags.tagger to 'none'"
        ) from error


def numbered(rows: Any) -> Any:  # noqa: ANN401 -- of datasets
    """Return training data with a number in every row, which a trainer may shuffle or drop.

    Raises:
        InputError: the data cannot have numbers.
    """
    _check_data(rows)
    if INDEX in rows.column_names:
        raise InputError(
            f"the training data have a column {INDEX}, which is the name of the numbers that "
            "tags and experts need: allowed is any other, rename it"
        )
    return rows.add_column(INDEX, list(range(len(rows))))


def check_numbers(rows: Any) -> None:  # noqa: ANN401 -- of datasets
    """Refuse a trainer's own form of the training data that has lost the numbers.

    Raises:
        InputError: saying so.
    """
    if INDEX not in (getattr(rows, "column_names", None) or ()):
        raise InputError(
            f"the trainer's form of the training data has no column {INDEX} any more, so its tags "
            "or experts are unknown: allowed is no packing, or TRL's padding_free in its place, "
            f"{OR}"
        )


def _check_data(rows: object) -> None:
    if not isinstance(rows, datasets.Dataset):
        raise InputError(
            f"the training data are a {type(rows).__name__}, but tags and experts need numbered "
            f"rows: allowed is a datasets.Dataset, {OR}"
        )


class WithIndices:
    """A collator that puts the rows' numbers into the batch.

    Args:
        collate: the trainer's own collator.
    """

    def __init__(self, collate: Any) -> None:  # noqa: ANN401 -- whatever a trainer takes
        self._collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows; those of evaluation have no numbers."""
        plain = [{name: value for name, value in row.items() if name != INDEX} for row in rows]
        batch: dict[str, Any] = dict(self._collate(plain))
        if all(INDEX in row for row in rows):
            batch[INDEX] = torch.tensor([row[INDEX] for row in rows])
        return batch
