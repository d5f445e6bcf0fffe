"""One run's state in a slot: where it stands in its curriculum, and the rows of its next batch.

Everything here depends on the run's own seed and settings, never on another slot.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from schemabank.common.failure import Failure
from schemabank.config.settings import BankSettings, LoraSettings
from schemabank.config.train import Stage, TrainSettings
from schemabank.engine.batches import EMPTY, Encoded, Schedule, prepend
from schemabank.methods.curriculum import (
    GROUPS,
    Group,
    StagePlan,
    StepSettings,
    keyed_uniform,
    plan,
    step_settings,
)
from schemabank.methods.tags import Tagger, prefix_text
from schemabank.tasks import Example
from schemabank.tasks.seams import leading_tokens

MAX_SKIPPED_IN_ROW = 20
# A loss in bfloat16 or float32 has no scale that must be searched for, so a healthy run skips
# nothing. One bad step is forgiven; of more, one in twenty changes the number of updates by less
# than arms are told apart by.
MOST_SKIPPED_RATIO = 0.05  # of the steps of a run, and of each of its stages
MOST_NAMED = 8

Tags = tuple[int, ...]


@dataclass(frozen=True)
class TagPlan:
    """How a run's examples are tagged and how the model is told.

    Attributes:
        tagger: maps an example to ``num_tags`` schema ids.
        num_tags: how many.
        prefix_room: most tokens of a text prefix that tells them; 0 for no prefix.
        loss_weight: tell by a router loss of this weight; 0 for none.
        fixed: whether an example has the same tags every time.
    """

    tagger: Tagger
    num_tags: int
    prefix_room: int
    loss_weight: float
    fixed: bool = False


@dataclass(frozen=True)
class Run:
    """One run, as the engine sees it.

    Attributes:
        name: for logs and reports.
        seed: of initial weights, data order, dropout and tags.
        stages: the curriculum.
        train: optimizer and length.
        lora: the adapter; rank and targets as the stack has room for.
        bank: the bank's regulariser weights; ``None`` for a run without a bank.
        tags: ``None`` for a run without tags.
    """

    name: str
    seed: int
    stages: tuple[Stage, ...]
    train: TrainSettings
    lora: LoraSettings
    bank: BankSettings | None = None
    tags: TagPlan | None = None


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
        """Mean number of labels of a batch, without those of tag prefixes."""
        return sum(e.num_labels for e in self.encoded) / self.schedule.steps_per_epoch

    def shape(self, step: int, prefix_room: int) -> tuple[int, int]:
        """Tokens and labels of every row of a step's batch that has room for a tag prefix."""
        bucket = self.schedule.bucket(step)
        extra_labels = 0 if self.completion_only else prefix_room
        return bucket.width + prefix_room, bucket.num_labels + extra_labels


@dataclass(frozen=True, order=True)
class Kind:
    """The kind of program that computes a step.

    A run's own stage decides it, and a program computes the runs of its kind alone, so that no
    neighbour's stage changes the order of a run's arithmetic.

    Attributes:
        trained: groups that get a gradient, sorted.
        cached: LoRA is untouched and stays so: the base model's states below the first bank are
            the same for all runs, and no gradient goes there.
        prefix_room: tokens that a row has on top of its bucket's width.
    """

    trained: tuple[Group, ...]
    cached: bool
    prefix_room: int


class Slot:
    """Progress of one run.

    Attributes:
        step: the next step, from 0.
        num_steps: how many steps the run has in all.
        num_cached: how many of them come before LoRA is trained.
        skipped: steps that changed nothing because a gradient was not finite.
        num_updates: how often each group of weights was really updated.
        failure: why the run was given up, or ``None``.
    """

    def __init__(self, run: Run, data: TrainingData) -> None:
        self.run, self.data = run, data
        epochs = run.train.num_train_epochs
        self.num_steps = run.train.max_steps or epochs * data.schedule.steps_per_epoch
        self.plans = plan(run.stages, self.num_steps)
        self.num_cached = 0 if run.bank is None else steps_before_lora(self.plans)
        self.step = 0
        self.skipped: list[int] = []
        self.num_updates: Counter[Group] = Counter()
        self.failure: Failure | None = None
        self._skipped_in_row = 0
        self._fixed_tags: dict[int, Tags] = {}
        self._prefixes: dict[Tags, list[int]] = {}
        self._epoch_rows: tuple[int, list[list[int]]] = (-1, [])

    @property
    def has_ended(self) -> bool:
        """Whether the run has taken its last step or was given up."""
        return self.step >= self.num_steps or self.failure is not None

    @property
    def has_fixed_tags(self) -> bool:
        """Whether an example has the same tags every time."""
        return self.run.tags is not None and self.run.tags.fixed

    @property
    def stage_before(self) -> Stage:
        """The stage of the step before the next one."""
        return next(p.stage for p in self.plans if p.start < self.step <= p.stop)

    def settings(self) -> StepSettings:
        """Return the settings of the next step."""
        return step_settings(self.plans, self.step, seed=self.run.seed)

    def bank_scale(self, settings: StepSettings) -> float:
        """Return the bank scale of a step; 0 for a run without a bank."""
        return 0.0 if self.run.bank is None else settings.bank_scale

    def kind(self, settings: StepSettings) -> Kind:
        """Return the kind of a step."""
        tagged = self.run.tags is not None and settings.tag_keep > 0
        cached = self.step < self.num_cached
        groups = self.plans[settings.stage].stage.train if cached else GROUPS
        return Kind(
            trained=tuple(sorted(groups)),
            cached=cached,
            prefix_room=self.run.tags.prefix_room if self.run.tags and tagged else 0,
        )

    def rows(self, settings: StepSettings) -> tuple[list[int], list[Tags], list[Encoded | None]]:
        """Return the next step's examples, ``EMPTY`` for none, with their tags, and its rows."""
        epoch, position = divmod(self.step, self.data.schedule.steps_per_epoch)
        if self._epoch_rows[0] != epoch:
            self._epoch_rows = (epoch, self.data.schedule.rows(self.run.seed, epoch))
        indices = self._epoch_rows[1][position]
        tags = [self._tags(settings, index) for index in indices]
        return indices, tags, [self._row(i, t) for i, t in zip(indices, tags, strict=True)]

    def loss_scale(self, rows: Sequence[Encoded | None]) -> float:
        """Return what the mean loss of a batch's labels is multiplied by.

        Where every label weighs the same, their sum is divided by the mean number of labels of all
        batches instead of the batch's own, so that an epoch's mean over steps is that over labels.
        """
        if self.run.train.loss_weighting == "batch":
            return 1.0
        num_labels = sum(row.num_labels for row in rows if row is not None)
        return num_labels / self.data.labels_per_batch

    def penalty_names(self) -> frozenset[str]:
        """Return the terms that the run may add to the task's loss."""
        bank, tags = self.run.bank, self.run.tags
        if bank is None:
            return frozenset()
        weights = {
            "entropy": bank.entropy_weight,
            "load_balance": bank.load_balance_weight,
            "orthonormality": bank.orthonormality_weight,
            "tags": 0.0 if tags is None else tags.loss_weight,
        }
        return frozenset(name for name, weight in weights.items() if weight != 0)

    def penalty_weights(self, settings: StepSettings) -> dict[str, float]:
        """Return the weight of every term that a step's loss adds to the task's."""
        bank = self.run.bank
        if bank is None or settings.bank_scale == 0:
            return {}
        weights = {"entropy": bank.entropy_weight, "load_balance": bank.load_balance_weight}
        if "schemas" in settings.trained:
            weights["orthonormality"] = bank.orthonormality_weight
        if self.run.tags is not None and settings.tag_keep > 0:
            weights["tags"] = self.run.tags.loss_weight
        return {name: weight for name, weight in weights.items() if weight != 0}

    def count(self, step: int, settings: StepSettings, *, skipped: bool) -> None:
        """Take note of a step; too many skipped ones end the run."""
        if not skipped:
            self.num_updates.update(settings.trained)
            self._skipped_in_row = 0
            return
        self.skipped.append(step)
        self._skipped_in_row += 1
        lack = self._lack_of_updates(self.plans[settings.stage])
        if lack is not None:
            self.failure = Failure(
                "diverged",
                f"no finite gradient in {lack}, up to step {step}: lower the learning rate, or "
                f"look at the examples of the skipped steps ({self._skipped_examples()})",
            )

    def _lack_of_updates(self, placed: StagePlan) -> str | None:
        """Which skipped steps are too many, after one in a stage."""
        if self._skipped_in_row >= MAX_SKIPPED_IN_ROW:
            return f"{MAX_SKIPPED_IN_ROW} steps in a row"
        for what, start, stop in (
            ("the run", 0, self.num_steps),
            (f"the stage {placed.stage.name!r}", placed.start, placed.stop),
        ):
            num_skipped = sum(start <= step < stop for step in self.skipped)
            allowed = most_skipped(stop - start)
            if num_skipped > allowed:
                return f"{num_skipped} of the {stop - start} steps of {what} (allowed: {allowed})"
        return None

    def _skipped_examples(self) -> str:
        """Name the examples of the first skipped steps."""
        schedule, found = self.data.schedule, dict[int, None]()
        for step in self.skipped:
            if len(found) > MOST_NAMED:
                break
            epoch, position = divmod(step, schedule.steps_per_epoch)
            found |= dict.fromkeys(schedule.rows(self.run.seed, epoch)[position])
        ids = [self.data.examples[index].id for index in found if index != EMPTY]
        return ", ".join(ids[:MOST_NAMED]) + (" and more" if len(ids) > MOST_NAMED else "")

    def _tags(self, settings: StepSettings, index: int) -> Tags:
        """Tags of an example, or none where the tag schedule drops them."""
        if self.run.tags is None or settings.tag_keep == 0 or index == EMPTY:
            return ()
        key = (self.run.seed, self.step, index)
        if keyed_uniform(f"tags/{key}") >= settings.tag_keep:
            return ()
        tags = self._fixed_tags.get(index)
        if tags is None:
            rng = np.random.default_rng(key)
            tags = self.run.tags.tagger(self.data.examples[index], rng=rng)
            if self.run.tags.fixed:
                self._fixed_tags[index] = tags
        return tags

    def _row(self, index: int, tags: Tags) -> Encoded | None:
        if index == EMPTY:
            return None
        example = self.data.encoded[index]
        if not tags or self.run.tags is None or not self.run.tags.prefix_room:
            return example
        prefix = self._prefixes.get(tags)
        if prefix is None:
            prefix = leading_tokens(prefix_text(tags), self.data.tokenizer)
            self._prefixes[tags] = prefix
        in_loss = not self.data.completion_only
        return prepend(example, prefix, after=self.data.beginning, in_loss=in_loss)


def most_skipped(num_steps: int) -> int:
    """Return how many of a run's or a stage's steps may be skipped: never all."""
    return min(num_steps - 1, max(1, int(MOST_SKIPPED_RATIO * num_steps)))


def steps_before_lora(plans: Sequence[StagePlan]) -> int:
    """Return how many of a run's first steps leave its adapter untouched."""
    trained = (p.start for p in plans if p.stop > p.start and "lora" in p.stage.train)
    return next(trained, plans[-1].stop)
