"""What every task hands over: examples in three splits, each with a stable id."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemabank.errors import InputError


@dataclass(frozen=True)
class Example:
    """One question with its worked solution and final answer.

    Attributes:
        id: stable over processes and versions, unique within the task.
        question: the question's text, without any prompt around it.
        solution: worked solution that ends in a marked answer, ``#### 72``.
        answer: the final answer alone, as the data set writes it.
        fields: named columns that a tagger or a report may use (``template``, ...).
        group: which part of the split results are reported for (``all``, ``seen``, ``held_out``).
    """

    id: str
    question: str
    solution: str
    answer: str
    fields: Mapping[str, str] = field(default_factory=dict)
    group: str = "all"


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task; no question stands in two of them."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def split(self, name: str) -> list[Example]:
        """Return the split ``train``, ``validation`` or ``test``."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise InputError(f"split {name!r} is not one of {', '.join(splits)}: name one of them")
        return splits[name]
