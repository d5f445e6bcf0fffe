"""Settings of validation while a program's runs train: when, which weights are kept, when to stop.

They go by transformers' names and mean what they mean there. The metric is the loss on the
program's validation examples, in nats per token; lower is better.
"""

from typing import Self

from pydantic import model_validator

from schemabank.config.base import PositiveInt, Settings, Weight


class ValidationSettings(Settings):
    """What is measured while a run trains, and what follows from it."""

    eval_steps: PositiveInt | None = None
    """Steps between measurements; null: those of an epoch. The last step is always measured."""
    load_best_model_at_end: bool = True
    """End with the weights that had the lowest loss, not with the last ones."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after so many measurements in a row that are no improvement; null: never."""
    early_stopping_threshold: Weight = 0.0
    """By how much the lowest loss must fall to be an improvement, in nats per token."""

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError(
                f"early_stopping_threshold is {self.early_stopping_threshold:g}, which has no "
                "effect without early_stopping_patience: set that too, or leave this out"
            )
        return self
