"""The training of a Tuner's run, in the only slot of a stack that stays on the model."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from schemabank.config.settings import RunConfig
from schemabank.config.validation import ValidationSettings
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import Cohort
from schemabank.engine.run import Run, TrainingData
from schemabank.engine.slots import Slot
from schemabank.models.basemodel import BaseModel
from schemabank.runs.grouping import tell_targets
from schemabank.runs.inmemory import KeptSteps, held_context
from schemabank.runs.members import Trainee, standing_of
from schemabank.runs.programsaves import (
    ProgramFolder,
    held_digests,
    held_model_digest,
    saving,
)
from schemabank.runs.progress import Reporter
from schemabank.runs.rescale import of_examples, rescale
from schemabank.runs.stacks import StartedStack
from schemabank.runs.training import SLOTS, Context, take_steps
from schemabank.runs.validating import Validator
from schemabank.runs.watching import skips


@dataclass(frozen=True)
class OneRun:
    """A run, and all that it is trained with.

    Attributes:
        stack: of one slot.
        base: the model that it is on.
        config: the run's settings.
        run: the same, as the engine takes it.
        data: its training data.
        asked: its validation examples.
        validate: when they are measured while it trains; ``None``: never.
        checkpoints: folder in which it is saved; ``None``: nowhere.
    """

    stack: StartedStack
    base: BaseModel
    config: RunConfig
    run: Run
    data: TrainingData
    asked: Sequence[Encoded]
    validate: ValidationSettings | None
    checkpoints: Path | None

    def train(self, steps: KeptSteps, validator: Validator, progress: Reporter) -> Trainee:
        """Take all steps, and leave in the slot what the run ends as.

        Args:
            steps: where its steps go.
            validator: measures it, if ``validate`` asks for it.
            progress: where progress goes.

        Raises:
            torch.OutOfMemoryError: a step does not fit.
        """
        with ExitStack() as exits:
            place = ProgramFolder(self.checkpoints, exits)
            context = self._context(progress)
            measured = None if self.validate is None else validator
            (ended,) = place.trainees({self.run.name: self.config}, context, steps, measured)
            begin = standing_of([ended], [Slot(self.run, self.data)], self.stack)
            cohort = Cohort(self.stack, [self.run], self.data, explain=progress.note, halted=begin)
            with saving([ended], context, steps, measured) as (open_log, follow):
                follow(cohort)
                if measured is not None:
                    measured.follow(cohort)
                tell_targets([self.config], self.base, progress.note)
                progress.start(f"train {self.config.arm}", cohort.num_steps)
                with open_log(cohort) as log:
                    lack = take_steps(cohort, log, context)
            if lack is not None:
                raise lack
            progress.finish()
            if cohort.slots[0].skipped:
                progress.note(skips(cohort.slots[0]))
            cohort.free()
            cohort.seat([self.run.name])
            validator.tell(cohort, progress.note)
            ended.fail(cohort.slots[0].failure)
            rescale([ended], cohort, of_examples(self.asked), progress, slots_setting=SLOTS)
        return ended

    def _context(self, progress: Reporter) -> Context:
        inputs = None
        if self.checkpoints is not None:
            inputs = held_digests(
                held_model_digest(self.base, but=self.stack),
                self.data,
                validation=self.asked,
                validate=self.validate,
                start=self.stack.start,
            )
        return held_context(self.base, self.data, progress, inputs=inputs)
