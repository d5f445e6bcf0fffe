"""Settings of training: steps, optimizer, and the stages of a curriculum.

A stage states only how it differs from the run's own ``train`` settings. So one learning rate, one
schedule and one warm-up hold for every arm unless a stage has its own.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemabank.config.base import Later, PositiveInt, Rate, Settings, Share, Weight

Schedule = Literal["linear", "cosine", "constant"]

# What a stage takes from ``train`` unless it has its own.
INHERITED = ("learning_rate", "lr_scheduler_type", "warmup_ratio")
RATE_DIGITS = 12  # of a learning rate that was multiplied, so that 0.3 times 1e-3 is 3e-4


class TrainSettings(Settings):
    """Steps and optimizer, of all arms."""

    num_train_epochs: PositiveInt = 2
    """Passes over the training examples."""
    max_steps: PositiveInt | None = None
    """Train so many steps instead, through as many epochs as they take."""
    batch_size: PositiveInt = 4
    """Examples a step."""
    max_buckets: PositiveInt = 20
    """Distinct batch lengths; examples of similar length share a batch."""
    epoch_orders: Annotated[PositiveInt, Later(1)] = 4
    """Orders of the batch lengths that take turns, one an epoch; slots are refilled in between."""
    loss_weighting: Annotated[Literal["batch", "token"], Later("batch")] = "batch"
    """All batches weigh the same, as in transformers' Trainer, or all tokens that the loss sees."""
    optimizer: Annotated[Literal["adamw", "muon"], Later("adamw")] = "adamw"
    """AdamW, or for A and B Muon, which makes every update of a matrix nearly orthogonal."""
    learning_rate: Rate = 1e-3
    """Peak learning rate; a stage of the arm schemabank may have its own, or a share of this."""
    loraplus_lr_ratio: Annotated[Rate, Later(1.0)] = 1.0
    """Learning rate of LoRA's B as a multiple of A's; above 1 it is LoRA+ (arXiv 2402.12354)."""
    lr_scheduler_type: Schedule = "linear"
    """Decay after the warm-up; a stage may have its own."""
    warmup_ratio: Share = 0.05
    """Share of the steps that warm up, of every stage for itself; a stage may have its own."""
    weight_decay: Weight = 0.01
    """Weight decay, of both optimizers."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first decay rate, and that of Muon's momentum."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's second decay rate."""
    adam_epsilon: Rate = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this norm, each run by itself."""
    max_skipped_ratio: Annotated[Share, Later(0.05)] = 0.05
    """A run fails that skips more of its or a stage's steps; one step may be, unless this is 0."""
    max_skipped_in_row: Annotated[PositiveInt, Later(20)] = 20
    """A run fails that skips more steps than this one after another."""


class AverageSettings(Settings):
    """The mean of an adapter over its steps, which it ends as instead of its last weights."""

    kind: Literal["none", "last", "exponential", "bema"] = "none"
    """Mean of the last checkpoints, exponential mean, or BEMA (arXiv 2508.00180)."""
    last: Annotated[int, Field(ge=1, le=1000)] = 5
    """Checkpoints whose mean the kind last takes."""
    span_ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the steps, at their end, over which those checkpoints are spread."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Share of itself that the exponential mean keeps in a step."""
    ema_power: Annotated[float, Field(ge=0, le=1)] = 0.5
    """κ of BEMA: after t steps, the mean moves to the weights by the share (lag + t)^-κ."""
    bias_power: Annotated[float, Field(ge=0, le=1)] = 0.2
    """η of BEMA: it adds the share (lag + t)^-η of the difference of last and first weights."""
    lag: PositiveInt = 10
    """ρ of BEMA."""


def _with_one(factors: tuple[float, ...]) -> tuple[float, ...]:
    """Return factors in ascending order, with 1 among them unless there are none."""
    if len(set(factors)) < len(factors):
        raise ValueError(
            f"factors is {list(factors)}, allowed are distinct numbers: name each factor once"
        )
    if factors == (1,):
        raise ValueError(
            "factors is [1], which changes nothing: allowed are lists with another number, such as "
            "[0.75, 1.25], add one or leave factors out"
        )
    return tuple(sorted({*factors, 1.0})) if factors else ()


class RescaleSettings(Settings):
    """The scale of an adapter, chosen on the validation split after training."""

    factors: Annotated[
        tuple[Annotated[float, Field(gt=0, le=100)], ...], AfterValidator(_with_one)
    ] = ()
    """The adapter is multiplied by that of these and 1 with the lowest loss; empty: by none."""


class DistillSettings(Settings):
    """Learning from several runs of the same settings, its teachers, which are trained before."""

    teachers: Annotated[int, Field(ge=0, le=64)] = 0
    """Runs with other seeds whose mean prediction a run learns; 0: it learns the labels alone."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of that prediction in what a run learns; the rest is the label."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """The teachers' logits are divided by it."""
    top_k: Annotated[int, Field(ge=2, le=1024)] = 16
    """The label and the most likely other tokens, so many in all, have a share."""


class StageSettings(Settings):
    """One stage of the curriculum; what it leaves out is as in ``train``."""

    name: Annotated[str, Field(min_length=1)]
    """Its name in logs."""
    ratio: Annotated[float, Field(gt=0, le=1)]
    """Its share of the run's steps."""
    train: Annotated[tuple[Literal["router", "schemas", "lora"], ...], Field(min_length=1)]
    """Groups that train; all others are frozen."""
    learning_rate: Rate | None = None
    """Peak learning rate, whatever train.learning_rate is; null: a share of that."""
    learning_rate_ratio: Rate | None = None
    """Peak learning rate as a share of train.learning_rate; null: 1, or learning_rate if given."""
    lr_scheduler_type: Schedule | None = None
    """Decay after the warm-up; null: train.lr_scheduler_type."""
    warmup_ratio: Share | None = None
    """Share of the stage's steps that warm up; null: train.warmup_ratio."""
    tag_keep: tuple[Share, ...] = ()
    """Probability that an example's tags are shown, in equal parts of the stage; empty: none."""
    bank_scale: tuple[Weight, Weight] = (1.0, 1.0)
    """Bank scale at the start and the end of the stage."""
    bank_probability: tuple[Share, Share] = (1.0, 1.0)
    """Probability that a step uses the bank, at the start and the end of the stage."""
    bare_tail_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the stage, at its end, that trains without the bank."""

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        if self.learning_rate is not None and self.learning_rate_ratio is not None:
            raise ValueError(
                f"the stage {self.name!r} has learning_rate {self.learning_rate:g} and "
                f"learning_rate_ratio {self.learning_rate_ratio:g}, allowed is one of them: "
                "leave the other out"
            )
        return self

    def resolved(self, train: TrainSettings) -> "Stage":
        """Return the stage of a run with these ``train`` settings."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        given = {
            "learning_rate": scaled_rate(train.learning_rate, own.pop("learning_rate_ratio")),
            "lr_scheduler_type": train.lr_scheduler_type,
            "warmup_ratio": train.warmup_ratio,
        }
        missing = {name: value for name, value in given.items() if own[name] is None}
        # All values were checked already, but for a rate that is a share of another.
        return Stage.model_construct(**(own | missing))


class Stage(StageSettings):
    """A stage that states all of its settings."""

    learning_rate: Rate
    """Peak learning rate."""
    lr_scheduler_type: Schedule = "linear"
    """Decay after the warm-up."""
    warmup_ratio: Share = 0.05
    """Share of the stage's steps that warm up."""


def scaled_rate(learning_rate: float, factor: float | None) -> float:
    """Return a learning rate times a factor, which is 1 if it is ``None``."""
    return float(f"{(factor or 1.0) * learning_rate:.{RATE_DIGITS}g}")


FADING = (1.0, 0.75, 0.5, 0.25)

# The document's stages at its rates, which do not follow plain LoRA's.
THREE_STAGES = (
    Stage(name="router", ratio=0.3, train=("router",), learning_rate=1e-3, tag_keep=FADING),
    Stage(name="schemas", ratio=0.3, train=("schemas", "lora"), learning_rate=1e-4),
    Stage(name="joint", ratio=0.4, train=("router", "schemas", "lora"), learning_rate=5e-5),
)

# The same stages at the rates of configs/sound/suite.yaml: LoRA's highest is that of plain LoRA.
EQUAL_RATE_STAGES = tuple(
    StageSettings(
        name=stage.name,
        ratio=stage.ratio,
        train=stage.train,
        learning_rate_ratio=share,
        tag_keep=stage.tag_keep,
    )
    for stage, share in zip(THREE_STAGES, (1.0, 1.0, 0.5), strict=True)
)
