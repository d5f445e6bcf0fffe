"""What a ``routing.json`` holds: the values that its tables and heat maps are made of, as written.

:mod:`schemabank.report.routing.analysis` writes it. Values that nothing reads again are left as
they are.
"""

from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from schemabank.config.base import PositiveInt, Weight
from schemabank.runs.resultshape import Count, Digest, Loss, StoredPart

# A choice weighs 1 / top_k in float32, so that sums of choices may miss 0 and 1 by this much.
ROUNDING = 1e-5
Share = Annotated[float, Field(ge=-ROUNDING, le=1 + ROUNDING)]
Shares = list[Share]
Nats = Loss  # with errors of rounding, so that 0 may be a little below 0


class _Layer(StoredPart):
    state: str
    layer: Count
    entropy: Nats
    effective_schemas: Weight
    load_balance: Weight
    dead: list[Count]
    usage: Shares
    changed: Share | None
    tag_agreement: Share | None = None
    tag_agreement_by_chance: Share | None = None

    @property
    def has_agreement(self) -> bool:
        """Whether its choices were compared with tags."""
        return self.tag_agreement is not None and self.tag_agreement_by_chance is not None


class _About(StoredPart):
    layer: Count
    place: str


class _Information(_About):
    state: str
    field: str
    value: Nats
    field_entropy: Nats
    shuffled_95: Nats
    p_value: Share


class _Reuse(_About):
    same: Share
    other: Share
    num_pairs: Count
    p_value: Share


class _ByValue(_About):
    field: str
    values: list[str]
    usage: list[Shares]

    @model_validator(mode="after")
    def _has_a_row_for_each_value(self) -> Self:
        if len(self.usage) != len(self.values):
            raise ValueError("as many rows of usage as values")
        return self


class RoutingReport(StoredPart):
    """A ``routing.json`` but for what is typical of each schema."""

    task: str
    split: str
    num_examples: PositiveInt
    num_clusters: PositiveInt | None = None  # older analyses have none, of any task
    num_schemas: PositiveInt
    top_k: PositiveInt
    states: Annotated[list[str], Field(min_length=1)]
    layers: Annotated[list[_Layer], Field(min_length=1)]
    information: list[_Information]
    reuse: list[_Reuse]
    by_value: list[_ByValue]
    inputs: dict[str, Digest] = Field(default_factory=dict)  # the first analyses have none

    @field_validator("layers")
    @classmethod
    def _are_compared_with_tags_alike(cls, layers: list[_Layer]) -> list[_Layer]:
        named = {"tag_agreement", "tag_agreement_by_chance"}
        found = {(layer.has_agreement, bool(named & layer.model_fields_set)) for layer in layers}
        if found not in ({(True, True)}, {(False, False)}):
            raise ValueError("tag_agreement and tag_agreement_by_chance in every row or in none")
        return layers

    @field_validator("information")
    @classmethod
    def _is_of_every_state(
        cls, rows: list[_Information], info: ValidationInfo
    ) -> list[_Information]:
        states = info.data.get("states", [])
        found = {(row.field, row.place, row.layer, row.state) for row in rows}
        missing = [
            (*key, state)
            for key in sorted({key[:3] for key in found})
            for state in states
            if (*key, state) not in found
        ]
        if missing:
            raise ValueError(f"a row for every state; {missing[0]!s:.100} has none")
        return rows
