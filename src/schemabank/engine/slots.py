"""One run's state in a slot: where it stands in its curriculum, and the rows of its next batch.

Everything here depends on the run's own seed and settings, never on another slot.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemabank.common.failure import Failure
from schemabank.config.train import Stage
from schemabank.engine.average import average_rate
from schemabank.engine.batches import EMPTY
from schemabank.engine.dropout import dropout_keys
from schemabank.engine.finished import Finished
from schemabank.engine.part import Field
from schemabank.engine.run import Rows, Run, TrainingData
from schemabank.engine.schedule import StagePlan, StepSettings, stage_index

STATE = ("weights", "mean", "square", "step")  # what ``SlotAdamW.state`` has, before any average
Carried = Mapping[str, Sequence[Tensor]]
"""What a slot's optimizers hold, by group: the tensors of ``STATE``, and the average if any."""

MOST_NAMED = 8
NO_ROWS = (-1, np.empty((0, 0), np.int64))  # of no epoch

# The engine's own fields of a step's input; parts and penalties have others, the batch its own.
FIELDS: Mapping[str, Field] = {
    "dropout_keys": Field(dtype=torch.int32),
    "learning_rate": Field(),
    "fresh": Field(dtype=torch.bool),  # whether the optimizer starts anew
    "loss_scale": Field(),  # what the mean loss of a slot's labels is multiplied by
    "consistency_weight": Field(),  # weight of the difference between two passes
    "average_rate": Field(),  # what share of the new weights their mean over the steps takes
}


@dataclass(frozen=True, order=True)
class Kind:
    """The kind of program that computes a step.

    A run's own stage decides it, and a program computes the runs of its kind alone, so that no
    neighbour's stage changes the order of a run's arithmetic.

    Attributes:
        cached: LoRA is untouched and stays so: the base model's states below the first part that
            acts on a block are the same for all runs, and no gradient goes there.
        trained: groups that get a gradient, sorted; ``None``: all.
        room: tokens that a row has on top of its bucket's width.
        passes: how often it runs the batch.
        soft: tokens that each label's soft targets have; 0: it learns the labels alone.
    """

    cached: bool
    trained: tuple[str, ...] | None
    room: int
    passes: int = 1
    soft: int = 0

    def trains(self, group: str) -> bool:
        """Whether a group gets a gradient."""
        return self.trained is None or group in self.trained


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one answer
class SlotState:
    """What a run's progress consists of, beside what its settings and its step tell.

    Attributes:
        step, num_steps, skipped, num_updates, stopped, chosen, origin: see :class:`Slot`.
        skipped_in_row: how many of the skipped steps are the last ones.
    """

    step: int
    num_steps: int
    skipped: tuple[int, ...]
    skipped_in_row: int
    num_updates: Mapping[str, int]
    stopped: bool = False
    chosen: Mapping[str, Tensor] | None = None
    origin: Mapping[str, Tensor] | None = None


class Slot:
    """Progress of one run.

    Attributes:
        step: the next step, from 0.
        num_steps: how many steps the run has in all.
        num_cached: how many of them are of a cached kind.
        skipped: steps that changed nothing because loss or gradient was not finite.
        num_updates: how often each group of weights was really updated.
        failure: why the run was given up, or ``None``.
        stopped: whether it was told to take no more steps.
        is_awaited: whether something must still look at it, whose memory ran out when it wanted to.
        chosen: weights that it ends as in place of its last ones, by group, on the CPU; empty once
            it has ended as them.
        origin: weights that its branches start from, by group, on the CPU; ``None``: it has come to
            none yet.
    """

    def __init__(self, run: Run, data: TrainingData) -> None:
        self.run, self.data = run, data
        self.course = run.method.course(run, data)
        self.num_steps, self.num_cached = self.course.num_steps, self.course.num_cached
        self.step = 0
        self.skipped: list[int] = []
        self.num_updates: Counter[str] = Counter()
        self.failure: Failure | None = None
        self.stopped = self.is_awaited = False
        self.chosen: dict[str, Tensor] | None = None
        self.origin: dict[str, Tensor] | None = None
        self._skipped_in_row = 0
        self._epoch_rows = NO_ROWS

    def let_go(self) -> None:
        """Let go of what only its steps needed, once it has ended: a cohort may have hundreds."""
        self.origin, self._epoch_rows = None, NO_ROWS
        if self.chosen is not None:
            self.chosen = {}

    def state(self) -> SlotState:
        """Return all that :meth:`restore` needs; a run that failed has none."""
        assert self.failure is None
        return SlotState(
            self.step,
            self.num_steps,
            tuple(self.skipped),
            self._skipped_in_row,
            dict(self.num_updates),
            self.stopped,
            self.chosen,
            self.origin,
        )

    def restore(self, state: SlotState) -> None:
        """Let a new slot of the run stand where another one stood."""
        assert state.num_steps == self.num_steps
        self.step, self.skipped = state.step, list(state.skipped)
        self.num_updates, self.stopped = Counter(state.num_updates), state.stopped
        self.chosen = None if state.chosen is None else dict(state.chosen)
        self.origin = None if state.origin is None else dict(state.origin)
        self._skipped_in_row = state.skipped_in_row

    @property
    def has_ended(self) -> bool:
        """Whether the run has taken its last step, was stopped or was given up."""
        is_over = self.step >= self.num_steps and not self.is_awaited
        return is_over or self.stopped or self.failure is not None

    @property
    def is_averaged(self) -> bool:
        """Whether the run ends as a mean of its weights."""
        return self.run.average.kind != "none" or bool(self.course.branch_starts)

    @property
    def ends_as_mean(self) -> bool:
        """Whether the run would end now as the mean of its weights.

        Until a step has moved the mean, it is the run's first weights: of the last checkpoints, or
        of the branches' ends, there is none yet. A run that is stopped so early ends as its last
        weights, and so does one that failed. A mean from before an adapter's reduction counts no
        more after it.
        """
        begin = self.course.reduced_at or 0
        counting = range(begin if self.step > begin else 0, self.step)
        return self.failure is None and any(self._average_rate(step) > 0 for step in counting)

    @property
    def stage_before(self) -> Stage:
        """The stage of the step before the next one."""
        return self.course.plans[stage_index(self.course.plans, self.step - 1)].stage

    def settings(self) -> StepSettings:
        """Return the settings of the next step."""
        return self.course.step(self.step)

    def kind(self, settings: StepSettings) -> Kind:
        """Return the kind of a step."""
        cached = self.step < self.num_cached
        stage = self.course.plans[settings.stage].stage
        return Kind(
            cached=cached,
            trained=tuple(sorted(stage.train)) if cached else None,
            room=self.course.room(settings),
            passes=self.run.passes,
            soft=0 if self.run.soft is None else self.run.soft.width,
        )

    def rows(self, settings: StepSettings) -> Rows:
        """Return the next step's rows."""
        epoch, position = divmod(self.step, self.data.schedule.steps_per_epoch)
        if self._epoch_rows[0] != epoch:
            self._epoch_rows = (epoch, self.data.schedule.rows(self.run.seed, epoch))
        return self.course.rows(settings, self._epoch_rows[1][position].tolist())

    def values(self, settings: StepSettings, rows: Rows) -> Mapping[str, npt.ArrayLike]:
        """Return the next step's values of ``FIELDS`` and of what the run's method gives."""
        own = {
            "dropout_keys": dropout_keys([(self.run.seed, self.step)])[0],
            "learning_rate": settings.learning_rate,
            "fresh": settings.first,
            "loss_scale": self._loss_scale(rows),
            "average_rate": self._average_rate(self.step),
        }
        return {**own, **self.course.values(settings, rows)}

    def _average_rate(self, step: int) -> float:
        """How far a step moves the mean; that of an adapter which is reduced begins there."""
        if self.course.branch_starts:
            ends = (*self.course.branch_starts[1:], self.num_steps)
            return 1 / (ends.index(step + 1) + 1) if step + 1 in ends else 0.0
        begin = self.course.reduced_at or 0
        begin = begin if step >= begin else 0
        return average_rate(self.run.average, step - begin, self.num_steps - begin)

    def _loss_scale(self, rows: Rows) -> float:
        """What the mean loss of a batch's labels is multiplied by.

        Where every label weighs the same, their sum is divided by the mean number of labels of all
        batches instead of the batch's own, so that an epoch's mean over steps is that over labels.
        """
        if self.run.train.loss_weighting == "batch":
            return 1.0
        num_labels = sum(row.encoded.num_labels for row in rows if row is not None)
        return num_labels / self.data.labels_per_batch

    def count(self, step: int, settings: StepSettings, *, skipped: bool) -> None:
        """Take note of a step; too many skipped ones end the run."""
        if not skipped:
            self.num_updates.update(settings.trained)
            self._skipped_in_row = 0
            return
        self.skipped.append(step)
        self._skipped_in_row += 1
        lack = self._lack_of_updates(self.course.plans[settings.stage])
        if lack is not None and self.failure is None:
            self.failure = Failure(
                "diverged",
                f"loss or gradient not finite in {lack}, up to step {step}: lower the learning "
                f"rate, or look at the examples of the skipped steps ({self._skipped_examples()})",
            )

    def examples(self, step: int) -> tuple[str, ...]:
        """Return the ids of the examples of a step's batch."""
        schedule = self.data.schedule
        epoch, position = divmod(step, schedule.steps_per_epoch)
        rows = schedule.rows(self.run.seed, epoch)[position].tolist()
        return tuple(self.data.examples[index].id for index in rows if index != EMPTY)

    def _lack_of_updates(self, placed: StagePlan) -> str | None:
        """Which skipped steps are too many, after one in a stage."""
        train = self.run.train
        if self._skipped_in_row > (allowed := train.max_skipped_in_row):
            return f"{self._skipped_in_row} steps in a row (allowed: {allowed})"
        for what, start, stop in (
            ("the run", 0, self.num_steps),
            (f"the stage {placed.stage.name!r}", placed.start, placed.stop),
        ):
            num_skipped = sum(start <= step < stop for step in self.skipped)
            allowed = most_skipped(stop - start, train.max_skipped_ratio)
            if num_skipped > allowed:
                return f"{num_skipped} of the {stop - start} steps of {what} (allowed: {allowed})"
        return None

    def _skipped_examples(self) -> str:
        """Name the examples of the first skipped steps."""
        found = dict[str, None]()
        for step in self.skipped:
            if len(found) > MOST_NAMED:
                break
            found |= dict.fromkeys(self.examples(step))
        return ", ".join([*found][:MOST_NAMED]) + (" and more" if len(found) > MOST_NAMED else "")


@dataclass(frozen=True)
class Halted:
    """What the runs of a cohort have come to, without a stack; see ``Cohort.halt``.

    Attributes:
        slots: the runs' progress.
        finished: weights of the runs that have ended, by name.
        begun: weights, moments and optimizer steps of those that have not, by name.
        tick: steps that the cohort has taken.
        seats: names of the runs that keep their slots, by these; without any, all slots are free.
    """

    slots: list[Slot]
    finished: Finished
    begun: dict[str, Carried]
    tick: int
    seats: Mapping[int, str] = field(default_factory=dict)


def most_skipped(num_steps: int, ratio: float) -> int:
    """Return how many of a run's or a stage's steps may be skipped: never all.

    A loss in bfloat16 or float32 has no scale that must be searched for, so a healthy run skips
    nothing. One bad step is forgiven, unless none may be skipped.
    """
    return min(num_steps - 1, max(int(ratio * num_steps), 1 if ratio > 0 else 0))
