"""What all settings share: frozen, strict about names, documented by their attribute docstrings.

Numbers are bounded, so that a slip such as 1e20 is refused where it is read. A truth value is no
number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MOST = 2**31 - 1  # what sizes, counts and indices of tensors can be
LARGEST = 3e38  # what float32 can hold

Int = Annotated[int, Field(ge=0, le=MOST)]
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]


@dataclass(frozen=True)
class Later:
    """Marks a setting that was added later; at the value ``before`` it is no part of a run's id."""

    before: object


class Settings(BaseModel):
    """Base of all settings: frozen, strict about names, documented by attribute docstrings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_as_numbers(cls, value: object, info: ValidationInfo) -> object:
        """Refuse ``true`` where a number is meant: pydantic would take it for 1."""
        assert info.field_name is not None
        if _holds_bool(value) and not _allows_bool(cls.model_fields[info.field_name].annotation):
            raise ValueError(
                f"{value!r:.80} holds a truth value, allowed is none here: write the number or "
                "the text itself"
            )
        return value


def _holds_bool(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_bool, value))
    return isinstance(value, bool)


def _allows_bool(annotation: Any) -> bool:  # noqa: ANN401 -- annotations have no common type
    return annotation in {bool, Any} or any(map(_allows_bool, get_args(annotation)))


# Sections of every method that trains LoRA.
OF_LORA = ("lora", "train", "average", "rescale", "distill")


@dataclass(frozen=True)
class MethodEntry:
    """What the settings must know of a method.

    Attributes:
        where: ``module:name`` of its class, a :class:`schemabank.methods.method.Method`.
        sections: sections of the settings that it uses and others may not; one of them has the
            method's name if it has ``settings``.
        settings: its own section; ``None`` for none.
        shared: dotted settings in which runs of one cohort must agree.
        second_pass: dotted settings that, unless 0, make every step run its batch twice.
        other_weights: takes its own section; whether it trains weights beyond A, B and the groups
            that its stages name; AdamW updates them whatever ``train.optimizer`` is.
        length: takes its own section (``None`` without one) and the steps that ``train`` gives a
            run, and returns those that it takes in all.
        ends_as_mean: whether a run ends as a mean of weights that its steps came to.
        unused: takes its own section and returns the settings that have no effect, with the reason.
    """

    where: str
    sections: tuple[str, ...] = OF_LORA
    settings: type[Settings] | None = None
    shared: tuple[str, ...] = ()
    second_pass: tuple[str, ...] = ()
    other_weights: Callable[[Any], bool] = lambda _settings: False
    length: Callable[[Any, int], int] = lambda _settings, steps: steps
    ends_as_mean: bool = False
    unused: Callable[[Any], Mapping[str, str]] = lambda _settings: {}

    @property
    def trains(self) -> bool:
        """Whether it trains anything."""
        return "train" in self.sections
