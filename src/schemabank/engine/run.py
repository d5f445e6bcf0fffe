"""One run as the engine sees it: its settings, its data, and what its method makes of its steps."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from schemabank.config.settings import LoraSettings
from schemabank.config.train import AverageSettings, Stage, TrainSettings
from schemabank.engine.batches import EMPTY, Bucket, Encoded, Schedule
from schemabank.engine.schedule import StepSettings, plan, step_settings
from schemabank.engine.softtargets import SoftTargets
from schemabank.tasks import Example


@dataclass(frozen=True)
class TrainingData:
    """Tokenised training examples and the schedule that all runs on them share.

    Attributes:
        examples: what taggers see.
        encoded: the same examples as tokens, in the same order.
        schedule: the shapes of the steps.
        tokenizer: for tag prefixes.
        beginning: tokens at the front of every example that stay before a prefix.
        completion_only: whether the loss leaves out the prompt.
    """

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    schedule: Schedule
    tokenizer: PreTrainedTokenizerBase
    beginning: int = 0
    completion_only: bool = True

    @cached_property
    def labels_per_batch(self) -> float:
        """Mean number of labels of a batch, without those of prefixes."""
        return sum(e.num_labels for e in self.encoded) / self.schedule.steps_per_epoch

    def shape(self, step: int, room: int) -> tuple[int, int]:
        """Tokens and labels of every row of a step's batch that has room for a prefix."""
        return self.shape_of(self.schedule.bucket(step), room)

    def shape_of(self, bucket: Bucket, room: int) -> tuple[int, int]:
        """The same for a batch of a bucket."""
        extra_labels = 0 if self.completion_only else room
        return bucket.width + room, bucket.num_labels + extra_labels


class Row(NamedTuple):
    """An example as a step shows it.

    Attributes:
        index: of the example.
        encoded: its tokens, with what the step puts in front of them.
        shown: what the step tells the model of the example, such as its tags.
        in_text: whether the tokens say it, in a prefix.
        lasting: whether another step is likely to show the same row.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a row for
    encoded: Encoded
    shown: tuple[int, ...] = ()
    in_text: bool = False
    lasting: bool = True

    @property
    def key(self) -> Hashable:
        """Equal for two rows of the same room exactly if their tokens are equal."""
        return self.index, self.shown if self.in_text else ()


Rows = Sequence[Row | None]  # of a batch; None for a row without an example


class Course:
    """What a run's steps do, as far as the host decides it. This one is plain LoRA's.

    A method refines it. All of it depends on the run's own seed, settings and data: a course that
    asked for anything else would let neighbours matter.

    Attributes:
        num_steps: how many steps the run has in all.
        plans: its stages on them.
        num_cached: how many of the first steps leave LoRA untouched, so that the base model's
            states below the first part that acts on a block can be used again.
        penalties: the terms that the run may add to the task's loss.
        reduced_at: the step before which the adapter gets its own rank; ``None``: it has it from
            the beginning.
        branch_starts: the steps before which the adapter goes back to the weights that it had
            before the first of them. The run then ends as the mean of what it came to before the
            others of these steps and at its end.
    """

    num_cached: int = 0
    reduced_at: int | None = None
    branch_starts: tuple[int, ...] = ()
    penalties: frozenset[str] = frozenset()

    def __init__(self, run: "Run", data: TrainingData) -> None:
        self.run, self.data = run, data
        epochs = run.train.num_train_epochs
        self.num_steps = run.train.max_steps or epochs * data.schedule.steps_per_epoch
        self.plans = plan(run.stages, self.num_steps)

    @property
    def trained_groups(self) -> frozenset[str]:
        """The groups of weights that some step updates."""
        return frozenset(name for stage in self.run.stages for name in stage.train)

    def step(self, number: int) -> StepSettings:
        """Return the settings of a step, from 0."""
        return step_settings(self.plans, number)

    def room(self, at: StepSettings) -> int:
        """Return how many tokens a row of a step may have on top of its bucket's width."""
        del at
        return 0

    def rows(self, at: StepSettings, indices: Sequence[int]) -> Rows:
        """Return a step's rows from the indices of its examples."""
        del at
        return [None if i == EMPTY else Row(i, self.data.encoded[i]) for i in indices]

    def values(self, at: StepSettings, rows: Rows) -> Mapping[str, npt.ArrayLike]:
        """Return a step's values of parts' fields and penalties' weights; others have defaults."""
        del at, rows
        return {}

    def logged(self, at: StepSettings) -> Mapping[str, float]:
        """Return a step's further figures for the run's log, beside those of every method."""
        del at
        return {}


class RunMethod(Protocol):
    """What a run trains, with its settings."""

    @property
    def settings(self) -> Mapping[str, object]:
        """The run's settings of every part that it uses, by the part's name."""

    def course(self, run: "Run", data: TrainingData) -> Course:
        """Return what the run's steps do."""


@dataclass(frozen=True)
class OnCourse:
    """A run that takes a course; without any other, plain LoRA's.

    Attributes:
        course: makes it.
        settings: see :class:`RunMethod`.
    """

    course: Callable[["Run", TrainingData], Course] = Course
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: for logs and reports.
        seed: of initial weights, data order, dropout and whatever else its method draws.
        stages: what is trained when.
        train: optimizer and length.
        lora: the adapter; rank and targets as the stack has room for.
        method: what it trains beside the adapter, and how.
        average: of the adapter over the steps, which the run ends as.
        passes: how often a step runs its batch, at most twice; the field ``consistency_weight``
            is then the weight of the difference between the passes' predictions.
        soft: what it learns at the labels of the training examples in their place, or ``None``.
    """

    name: str
    seed: int
    stages: tuple[Stage, ...]
    train: TrainSettings
    lora: LoraSettings
    method: RunMethod = field(default_factory=OnCourse)
    average: AverageSettings = field(default_factory=AverageSettings)
    passes: int = 1
    soft: SoftTargets | None = None
