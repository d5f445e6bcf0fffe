"""Which layers get an adapter, as it is written: by names, by a pattern, or all of them.

As in PEFT a regular expression has to match a layer's whole path. Only a model says which layers
that are; :mod:`schemabank.engine.targets` asks it.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

ALL_LINEAR = "all-linear"
# The default. Where a model calls its attention's layers otherwise, it stands for those.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PATTERN = re.compile(r"[*+?^$|\[\]{}\\]")  # what a regular expression has and no layer's name


def is_choice(target: object) -> bool:
    """Whether a target stands for layers that only a model knows: all of them, or a pattern's."""
    return isinstance(target, str) and (target == ALL_LINEAR or bool(PATTERN.search(target)))


def is_open(targets: Sequence[str]) -> bool:
    """Whether a model has a say in which layers targets stand for."""
    return tuple(targets) == ATTENTION or any(map(is_choice, targets))


Targets = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(lambda names: [names] if is_choice(names) else names),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}},
                {"const": ALL_LINEAR},
                {"type": "string", "pattern": PATTERN.pattern},
            ]
        }
    ),
]


def check_targets(targets: Sequence[str]) -> None:
    """Refuse what contradicts itself, or is no regular expression.

    Raises:
        ValueError: says which target it is.
    """
    if ALL_LINEAR in targets and len(targets) > 1:
        raise ValueError(
            f"target_modules is {targets}, allowed are names of layers or {ALL_LINEAR} alone: "
            "leave the others out"
        )
    for target in filter(is_choice, targets):
        try:
            re.compile(target)
        except re.error as error:
            raise ValueError(
                f"target_modules has {target!r}, which is no regular expression ({error}), allowed "
                "are those and names of layers: correct it"
            ) from error
