"""Validation while runs train: the best weights of each are kept, and those that rest are stopped.

Every run is measured at its own steps, and its losses decide about nothing but itself, so
neighbours do not matter. A run's measurements begin with the last of its stages that trains the
adapter, and after an arm such as ``shrink`` has given it its own rank: an adapter from before that
is not what the arm trains. A run that stops leaves its slot as one that has taken its last step.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from typing import Any

from pydantic import Field, ValidationError

from schemabank.common.errors import InputError, first_line
from schemabank.config.methods import METHODS
from schemabank.config.settings import RunConfig
from schemabank.config.validation import ValidationSettings
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import Cohort
from schemabank.engine.run import Course
from schemabank.engine.slots import Slot
from schemabank.runs.evaluate import mean_losses
from schemabank.runs.resultshape import Count, StoredPart


@dataclass(frozen=True)
class Validation:
    """One measurement of a run while it trained.

    Attributes:
        step: how many steps the run had taken.
        loss: on the validation examples in nats per token, as
            :meth:`schemabank.Tuner.evaluate` measures it.
        best: whether it was the lowest so far.
    """

    step: int
    loss: float
    best: bool


class _Measured(StoredPart):
    step: Count
    loss: str
    best: bool


class _Records(StoredPart):
    validations: list[_Measured] = Field(default_factory=list)
    waited: Count = 0


class Validator:
    """Measures runs between their steps.

    Args:
        settings: when, and what follows.
        examples: what is measured.

    Attributes:
        found: the measurements of every run so far, by its name.
    """

    def __init__(self, settings: ValidationSettings, examples: Sequence[Encoded]) -> None:
        self._settings, self._examples = settings, examples
        self.found: dict[str, list[Validation]] = defaultdict(list)
        self._waited: dict[str, int] = defaultdict(int)

    def records(self, name: str) -> dict[str, Any]:
        """Return what :meth:`restore` needs of a run, as JSON has it: losses as exact texts."""
        found = [
            {"step": each.step, "loss": each.loss.hex(), "best": each.best}
            for each in self.found[name]
        ]
        return {"validations": found, "waited": self._waited[name]}

    def restore(self, name: str, records: Mapping[str, Any]) -> None:
        """Take what was measured of a run in an earlier call; nothing where there is nothing.

        Raises:
            InputError: it is another thing than was kept.
        """
        try:
            kept = _Records.model_validate(dict(records))
            losses = [float.fromhex(each.loss) for each in kept.validations]
        except (ValidationError, ValueError) as error:
            raise InputError(
                f"what was kept of the validation of {name!r} is not what was written "
                f"({first_line(error)}): remove the folder of checkpoints"
            ) from error
        pairs = zip(kept.validations, losses, strict=True)
        self.found[name] = [Validation(each.step, loss, each.best) for each, loss in pairs]
        self._waited[name] = kept.waited

    def follow(self, cohort: Cohort) -> None:
        """Measure a cohort's runs from now on, and warn of settings that cannot have an effect."""
        cohort.between = partial(self._look, cohort)
        for slot in cohort.slots:
            if not self.found[slot.run.name]:
                self._warn_if_idle(slot)

    def _warn_if_idle(self, slot: Slot) -> None:
        settings, name, num_steps = self._settings, slot.run.name, slot.num_steps
        patience = settings.early_stopping_patience
        times = sum(self._is_time(slot, step) for step in range(num_steps + 1))
        measured = f"but {name!r} is measured {times} times in {num_steps} steps, so it"
        if patience is not None and patience + 2 > times:
            allowed = f"up to {times - 2}, or measure" if times > 2 else "to measure"
            said = f"cannot stop before its end: allowed is {allowed} it more often by eval_steps"
            warnings.warn(f"early_stopping_patience is {patience}, {measured} {said}", stacklevel=4)
        elif times == 1 and settings.load_best_model_at_end:
            most = num_steps - 1 - _begin(slot.course)
            mend = f"set eval_steps to at most {most}" if most > 0 else "train more steps"
            warnings.warn(
                f"load_best_model_at_end is True, but {name!r} is measured after the last of its "
                f"{num_steps} steps alone, so there is no other to choose: {mend}",
                stacklevel=4,
            )

    def _look(self, cohort: Cohort, seated: Mapping[int, Slot]) -> None:
        """Measure those runs whose time it is; all slots cost what one costs.

        Memory may run out here as in a step; what was not measured is measured in the next cohort.
        """
        due = {index: slot for index, slot in seated.items() if self._is_due(slot)}
        if not due:
            return
        cohort.stack.rest()  # a training step leaves its dropout and strengths behind
        with cohort.stack.evaluating("off"):
            losses = mean_losses(cohort.stack, self._examples)
        for index, slot in due.items():
            best = self._note(slot, losses[index])
            if best and self._settings.load_best_model_at_end:
                slot.chosen = cohort.weights(index)

    def tell(self, cohort: Cohort, note: Callable[[str], None]) -> None:
        """Say which runs ended early, or with other weights than their last."""
        for slot in cohort.slots:
            name, parts = slot.run.name, []
            if slot.stopped:
                parts.append(f"stopped after {slot.step} of {slot.num_steps} steps")
            best = max((each.step for each in self.found[name] if each.best), default=None)
            if slot.chosen is not None and best != slot.step:
                parts.append(f"keeps the weights of step {best}, whose validation loss is lowest")
            if parts and slot.failure is None:
                note(f"{name}: {', '.join(parts)}")

    def _is_due(self, slot: Slot) -> bool:
        found = self.found[slot.run.name]
        measured = bool(found) and found[-1].step == slot.step
        return not measured and slot.failure is None and self._is_time(slot, slot.step)

    def _is_time(self, slot: Slot, step: int) -> bool:
        every = self._settings.eval_steps or slot.data.schedule.steps_per_epoch
        is_last = step == slot.num_steps
        return step > _begin(slot.course) and (is_last or step % every == 0)

    def _note(self, slot: Slot, loss: float) -> bool:
        """Take note of a loss, and say whether it is the lowest; too many others stop the run.

        As transformers' ``EarlyStoppingCallback`` does, any lower loss becomes the one to compare
        with, also one that is lower by less than the threshold.
        """
        settings, name = self._settings, slot.run.name
        lowest = min((each.loss for each in self.found[name] if each.best), default=inf)
        best = isfinite(loss) and loss < lowest
        self.found[name].append(Validation(slot.step, loss, best))
        improved = best and lowest - loss > settings.early_stopping_threshold
        self._waited[name] = 0 if improved else self._waited[name] + 1
        patience = settings.early_stopping_patience
        waited = patience is not None and self._waited[name] >= patience
        slot.stopped = waited and slot.step < slot.num_steps
        return best


def check_validating(settings: object, config: RunConfig, *, validated: bool, what: str) -> None:
    """Refuse validation while training that has nothing to measure, or measures something else.

    Args:
        settings: as a program gave them.
        config: a run's settings.
        validated: whether there are validation examples.
        what: the run's settings are called, for messages.

    Raises:
        InputError: naming what is wrong.
    """
    if settings is None:
        return
    if not isinstance(settings, ValidationSettings):
        raise InputError(
            f"validate is {settings!r:.80}: allowed is a schemabank.ValidationSettings, make one"
        )
    if not validated:
        raise InputError(
            "validate is given, but there are no validation examples to measure: give them as "
            "validation, or leave validate out"
        )
    if METHODS[config.arm].ends_as_mean:
        raise InputError(
            f"{what}.arm is {config.arm!r}, which ends as a mean of weights that no single step "
            "has, but validation while training measures those of single steps: allowed are other "
            "arms, set one or leave validate out"
        )
    if config.averaging.kind != "none":
        raise InputError(
            f"{what}.average.kind is {config.average.kind!r}, whose mean is taken over all steps, "
            "but validation while training measures the weights of single steps: allowed is "
            "'none', set it or leave validate out"
        )


def _begin(course: Course) -> int:
    """Return the step from which on a run's weights are such as it may end with."""
    trained = [p.start for p in course.plans if p.num_steps and "lora" in p.stage.train]
    return max([*trained, course.reduced_at or 0])
