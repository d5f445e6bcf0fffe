"""What a ``result.json`` holds: every value with its kind and range, as it is written.

:mod:`schemabank.runs.finish` writes it, and :mod:`schemabank.tasks.scoring.scores` its groups.
Which figures a group of items has depends on the metric and on the names of its scores, so the
shape of a group is made for them. Unknown keys are left as they are.
"""

from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from schemabank.config.base import LARGEST, Int, PositiveInt, Seed, Weight
from schemabank.config.settings import Arm
from schemabank.config.task import MetricName
from schemabank.tasks.scoring.scores import METRICS

MOST_COUNTED = 2**53  # the largest number up to which a float holds every whole number
ROUNDING = 1e-9


def _clear_of_rounding(value: float) -> float:
    if not -ROUNDING <= value <= 1 + ROUNDING:
        raise ValueError("a share from 0 to 1")
    return value


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError("greater than or equal to 0, or NaN")
    return value


Count = Annotated[int, Field(ge=0, le=MOST_COUNTED)]
# Means of many shares, and the ends of their intervals, may miss 0 and 1 by rounding.
Share = Annotated[float, AfterValidator(_clear_of_rounding)]
# Nats per token, computed in float32. The losses of a run that was trained and scored are finite.
Loss = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern="^[!-~]*$")]
Figure = Annotated[float, Field(ge=0)]
FigureOrNan = Annotated[float, AfterValidator(_not_negative)]


class StoredPart(BaseModel):
    """A part of a stored file; keys that it does not name are left as they are."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Tried(StoredPart):
    factor: Factor
    gold_nll_with_end: Loss | None


class _Rescale(StoredPart):
    factor: Factor
    tried: Annotated[list[_Tried], Field(min_length=2)]

    @model_validator(mode="after")
    def _was_tried(self) -> Self:
        if not any(
            one.factor == self.factor and one.gold_nll_with_end is not None for one in self.tried
        ):
            raise ValueError("a factor that is among those tried, with a loss")
        return self


class _Skipped(StoredPart):
    step: Int
    examples: list[str]


class _Training(StoredPart):
    num_steps: Count
    num_examples: Count
    num_skipped_steps: Count
    skipped_steps: list[_Skipped] = Field(default_factory=list)  # the first, if there are any
    num_lora_updates: Count
    num_updates: dict[str, Count] = Field(default_factory=dict)  # the first runs have none
    num_trained_parameters: Count
    num_teacher_steps: Count = 0  # only runs with teachers have it
    rescale: _Rescale | None = None  # only of runs that chose their adapter's scale


class _PeftCheck(StoredPart):
    difference: Weight | None
    allowed: Weight | None
    reason: str | None

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if (self.difference is None or self.allowed is None) and self.reason is None:
            raise ValueError("a difference with its bound, or a reason why there is none")
        return self


class Result(StoredPart):
    """A run's ``result.json`` but for the shape of its groups."""

    arm: Arm
    seed: Seed
    config_hash: Annotated[str, Field(pattern="^[0-9a-f]{10}$")]
    model: str
    dtype: str
    task: str
    split: str
    few_shot: Int
    prompt_form: str = ""  # the first runs have none, nor inputs and peft_check
    prompt_forms: dict[str, Any] = Field(default_factory=dict)
    routing: Literal["off", "on", "dense"]
    max_new_tokens: PositiveInt
    num_samples: PositiveInt
    temperature: Weight
    top_p: Share
    sampling_seed: Seed
    batch_size: PositiveInt
    padding_side: str
    inputs: dict[str, Digest] = Field(default_factory=dict)
    versions: dict[str, str | None]
    training: _Training | None
    metric: MetricName
    scores: list[str]
    groups: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    peft_check: _PeftCheck | None = None

    @field_validator("scores")
    @classmethod
    def _begin_with_the_metrics(cls, scores: list[str], info: ValidationInfo) -> list[str]:
        if "metric" not in info.data:  # which is wrong itself
            return scores
        primary = METRICS[info.data["metric"]].primary
        first = [] if primary is None else [primary]
        if scores[:1] != first:
            raise ValueError(f"a list that begins with {first}, as of {info.data['metric']!r}")
        return scores


@cache
def shape_of_group(
    metric: MetricName, scores: tuple[str, ...], *, is_trained: bool
) -> type[StoredPart]:
    """Return the shape of a group of items.

    :func:`schemabank.tasks.scoring.scores.summarise` writes it.

    Args:
        metric: the metric that scored the group.
        scores: names of its scores, the primary first.
        is_trained: whether the result is of a trained run. Its losses are finite, since otherwise
            it would have failed. The losses of an adapter that is only evaluated need not be.
    """
    loss = Loss if is_trained else float
    needed: dict[str, Any] = {"num_items": PositiveInt, "gold_nll_with_end": loss}
    optional: dict[str, Any] = {"num_samples": PositiveInt}
    if METRICS[metric].decodes:
        needed |= _completion_fields(metric, scores) | {"gold_nll": loss}
        optional |= {f"{name}_among_ended": Share for name in scores[:1]}  # where any ended
    else:
        needed |= {"num_clusters": PositiveInt, "num_tokens": Count}
        needed |= dict.fromkeys(scores, Figure if is_trained else FigureOrNan)
        needed |= {f"{name}_interval_95": _interval(Figure) for name in scores[:1]}
    # Fields are numbered, since a name such as pass@5 is no name in Python.
    fields: dict[str, Any] = {
        f"field_{number}": (kind, Field(default=... if name in needed else None, alias=name))
        for number, (name, kind) in enumerate({**optional, **needed}.items())
    }
    return create_model("Group", __base__=StoredPart, **fields)


def _completion_fields(metric: MetricName, scores: tuple[str, ...]) -> dict[str, Any]:
    """The figures that a group has only with a metric that needs completions."""
    shares = (*scores, "ended_ratio", "length_limit_ratio", "unparsable_ratio")
    fields: dict[str, Any] = dict.fromkeys(shares, Share) | {"mean_new_tokens": Weight}
    for primary in scores[:1]:
        fields[f"{primary}_interval_95"] = _interval(Share)
        if METRICS[metric].constant:
            fields |= {"best_constant_answer": str, f"best_constant_{primary}": Share}
    return fields


def _interval(kind: Any) -> Any:  # noqa: ANN401 -- annotations have no common type
    """Both ends of an interval, or ``None`` where there is none."""
    return Annotated[list[kind], Field(min_length=2, max_length=2)] | None
