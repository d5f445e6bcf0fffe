"""One run's state in a slot: where it stands in its curriculum, and the rows of its next batch.

Everything here depends on the run's own seed and settings, never on another slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from schemabank.cohort.batches import EMPTY, Encoded, Schedule, prepend
from schemabank.config import BankSettings, Stage, TrainSettings
from schemabank.curriculum import StepSettings, plan, step_settings
from schemabank.tags import Tagger, prefix_text
from schemabank.tasks import Example

MAX_SKIPPED_IN_ROW = 20

Tags = tuple[int, ...]


@dataclass(frozen=True)
class TagPlan:
    """How a run's examples are tagged and how the model is told.

    Attributes:
        tagger: maps an example to schema ids.
        prefix: tell by a text prefix.
        loss_weight: tell by a router loss of this weight; 0 for none.
    """

    tagger: Tagger
    prefix: bool
    loss_weight: float


@dataclass(frozen=True)
class Run:
    """One run, as the engine sees it.

    Attributes:
        name: for logs and reports.
        seed: of initial weights, data order, dropout and tags.
        stages: the curriculum.
        train: optimizer and length.
        bank: the bank's regulariser weights; ``None`` for a run without a bank.
        tags: ``None`` for a run without tags.
    """

    name: str
    seed: int
    stages: tuple[Stage, ...]
    train: TrainSettings
    bank: BankSettings | None = None
    tags: TagPlan | None = None


@dataclass(frozen=True)
class TrainingData:
    """Tokenised training examples and the schedule that all runs on them share.

    Attributes:
        examples: what taggers see.
        encoded: the same examples as tokens, in the same order.
        schedule: the shapes of an epoch's steps.
        tokenizer: for tag prefixes.
        prefix_room: tokens that a tag prefix may add to a row; 0 where no run has prefixes.
        beginning: tokens at the front of every example that stay before a prefix.
        completion_only: whether the loss leaves out the prompt.
    """

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    schedule: Schedule
    tokenizer: PreTrainedTokenizerBase
    prefix_room: int = 0
    beginning: int = 0
    completion_only: bool = True

    def shape(self, step: int) -> tuple[int, int]:
        """Tokens and labels of every row of a step's batch.

        Room for prefixes is there in every step: a shape that followed the stages of some slots
        would change the dropout masks of others.
        """
        position = step % self.schedule.steps_per_epoch
        bucket = self.schedule.buckets[self.schedule.order[position]]
        extra_labels = 0 if self.completion_only else self.prefix_room
        return bucket.width + self.prefix_room, bucket.num_labels + extra_labels


class Slot:
    """Progress of one run.

    Attributes:
        num_steps: how many steps the run has in all.
        num_skipped: steps skipped because a gradient was not finite.
        failure: why the run was given up, or ``None``.
    """

    def __init__(self, run: Run, data: TrainingData) -> None:
        self.run, self.data = run, data
        epochs = run.train.num_train_epochs
        self.num_steps = run.train.max_steps or epochs * data.schedule.steps_per_epoch
        self.plans = plan(run.stages, self.num_steps)
        self.num_skipped = 0
        self.failure: str | None = None
        self._skipped_in_row = 0
        self._epoch_rows: tuple[int, list[list[int]]] = (-1, [])

    def settings(self, step: int) -> StepSettings | None:
        """Return the settings of a step, or ``None`` once the run has ended or failed."""
        if step >= self.num_steps or self.failure is not None:
            return None
        return step_settings(self.plans, step, seed=self.run.seed)

    def bank_scale(self, settings: StepSettings | None) -> float:
        """Return the bank scale of a step; 0 for a run without a bank."""
        return 0.0 if settings is None or self.run.bank is None else settings.bank_scale

    def rows(
        self, step: int, settings: StepSettings | None
    ) -> tuple[list[Encoded | None], list[Tags]]:
        """Return the rows of a step's batch, ``None`` where there is no example, and their tags."""
        schedule = self.data.schedule
        if settings is None:
            return [None] * schedule.batch_size, [()] * schedule.batch_size
        epoch, position = divmod(step, schedule.steps_per_epoch)
        if self._epoch_rows[0] != epoch:
            self._epoch_rows = (epoch, schedule.rows(self.run.seed, epoch))
        indices = self._epoch_rows[1][position]
        tags = [self._tags(settings, index, step) for index in indices]
        return [self._row(i, t) for i, t in zip(indices, tags, strict=True)], tags

    def penalty_weights(self, settings: StepSettings | None) -> dict[str, float]:
        """Return the weight of every term that this step's loss adds to the task's."""
        bank = self.run.bank
        if bank is None or settings is None or settings.bank_scale == 0:
            return {}
        weights = {"entropy": bank.entropy_weight, "load_balance": bank.load_balance_weight}
        if "schemas" in settings.trained:
            weights["orthonormality"] = bank.orthonormality_weight
        if self.run.tags is not None and settings.tag_keep > 0:
            weights["tags"] = self.run.tags.loss_weight
        return {name: weight for name, weight in weights.items() if weight != 0}

    def count(self, *, skipped: bool, step: int) -> None:
        """Take note of a step; many skipped ones in a row end the run."""
        self.num_skipped += skipped
        self._skipped_in_row = self._skipped_in_row + 1 if skipped else 0
        if self._skipped_in_row >= MAX_SKIPPED_IN_ROW:
            self.failure = (
                f"no finite gradient in {MAX_SKIPPED_IN_ROW} steps in a row, up to step {step}"
            )

    def _tags(self, settings: StepSettings, index: int, step: int) -> Tags:
        """Tags of an example, or none where the tag schedule drops them."""
        if self.run.tags is None or settings.tag_keep == 0 or index == EMPTY:
            return ()
        rng = np.random.default_rng([self.run.seed, step, index])
        if rng.random() >= settings.tag_keep:
            return ()
        return self.run.tags.tagger(self.data.examples[index], rng=rng)

    def _row(self, index: int, tags: Tags) -> Encoded | None:
        if index == EMPTY:
            return None
        example = self.data.encoded[index]
        if not tags or self.run.tags is None or not self.run.tags.prefix:
            return example
        prefix = self.data.tokenizer(prefix_text(tags), add_special_tokens=False)["input_ids"]
        in_loss = not self.data.completion_only
        return prepend(example, prefix, after=self.data.beginning, in_loss=in_loss)


def tag_tensors(tags: Sequence[Sequence[Tags]]) -> tuple[Tensor, Tensor]:
    """Return tags ``(slot, batch, tag)`` and which examples show them, ``(slot, batch)``."""
    num_tags = max((len(t) for slot in tags for t in slot), default=0) or 1
    ids = [[t or (0,) * num_tags for t in slot] for slot in tags]
    shown = [[float(bool(t)) for t in slot] for slot in tags]
    return torch.tensor(ids), torch.tensor(shown)
