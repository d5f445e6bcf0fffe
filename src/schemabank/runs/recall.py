"""What an evaluation knows from an earlier call, and who is told of what it finds: here, no one.

:mod:`schemabank.runs.answers` knows what lies in the folders of runs.
"""

from collections.abc import Sequence
from typing import Self

from schemabank.engine.decoding.completion import Memory

Losses = tuple[float, float]
"""A gold target's mean loss without and with its end token, in nats per token."""


class Recall(Memory):
    """What is known of an evaluation, and who is told of the rest.

    Prompts and questions are named by their index in the order in which they are evaluated. It is
    entered while the model computes.
    """

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_error: object) -> None:
        """End."""

    def losses(self, question: int) -> Sequence[Losses] | None:
        """Return a question's losses with every slot's adapter, if all are known."""
        del question
        return None

    def measured(self, question: int, losses: Sequence[Losses]) -> None:
        """Take note of a question's losses with every slot's adapter."""

    def look(self) -> None:
        """Do what there is to do between two steps of the model."""
