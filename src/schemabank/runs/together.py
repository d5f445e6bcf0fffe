"""The Python interface to many runs at once: a cohort on your own model, and a result for each run.

What a configuration file's runs go through is what these go through: the same grouping, the same
slots, the same engine. A cohort of one run is what a :class:`schemabank.runs.tuner.Tuner` trains.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.adapters.files import Adapter, load_adapter
from schemabank.common.errors import InputError
from schemabank.common.failure import FAILING, Failure, failure_of
from schemabank.common.quiet import quiet_compiler
from schemabank.config.settings import RunConfig
from schemabank.config.validation import ValidationSettings
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.continuing import check_whole, continued
from schemabank.runs.evaluate import mean_losses
from schemabank.runs.grouping import check_runs, planned_cohorts, sharing, tell_targets
from schemabank.runs.inmemory import (
    KeptSteps,
    OnStep,
    Weights,
    check_tags,
    held_base,
    held_context,
    held_data,
    only_used,
    tell_without_effect,
    validation_data,
    when_saved,
)
from schemabank.runs.members import Rescaled, Trainee
from schemabank.runs.pairs import Examples, as_examples
from schemabank.runs.programruns import check_slots_and_validation, named_runs
from schemabank.runs.programsaves import (
    ProgramFolder,
    folder_of,
    held_digests,
    held_model_digest,
    saving,
)
from schemabank.runs.progress import Reporter, reporter
from schemabank.runs.training import Context, train_all
from schemabank.runs.tuner import Tuner, tuner_with
from schemabank.runs.turns import seated
from schemabank.runs.validating import Validation, Validator
from schemabank.tasks import Example

WHO = "train_cohort"
APART = (
    "the runs train in {} groups, one after the other, since they differ in train.batch_size, "
    "train.max_buckets, train.epoch_orders or settings of task"
)
NOT_FINITE = Failure(
    "diverged", "no finite loss on the validation examples: train at a lower learning rate"
)


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one answer
class RunResult:
    """What has become of one run of :func:`train_cohort`.

    Attributes:
        name: of the run.
        config: its settings, as they were given; with an adapter to begin with, its rank, scale and
            targets.
        steps: what every step did; losses in nats per token.
        failure: why it failed; ``None`` if it did not. A run that failed in training has no
            adapter; one whose loss alone could not be measured keeps it.
        validation_loss: mean loss on the validation examples in nats per token, as
            :meth:`schemabank.Tuner.evaluate` measures it; ``None`` without them, and where the run
            failed before.
        rescaled: how its adapter's scale was chosen, where ``rescale.factors`` are given.
        validations: what was measured while it trained, where ``validate`` asked for it.
    """

    name: str
    config: RunConfig = field(repr=False)
    steps: tuple[RunStep, ...] = field(repr=False)
    failure: Failure | None
    validation_loss: float | None
    rescaled: Rescaled | None
    validations: tuple[Validation, ...] = field(repr=False)
    _weights: Weights | None = field(repr=False)
    _base: BaseModel = field(repr=False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter for ``peft.PeftModel.from_pretrained``; nothing is overwritten.

        Raises:
            InputError: the folder exists, or the run failed in training.
        """
        self._trained().save(Path(folder), self.config, self._base)

    def attach(self) -> Tuner:
        """Put the adapter on the model it was trained on, until the Tuner's ``remove()``.

        The Tuner has no banks. It evaluates, generates and saves, and its ``train`` goes on from
        the adapter where the arm can. ``with result.attach() as tuner:`` removes it at the end.

        Raises:
            InputError: the run failed in training, or another Tuner's layers are on the model.
        """
        weights = self._trained()
        base = held_base(self._base.model, self._base.tokenizer)
        tuner = tuner_with(base, self.config, weights.tensors)
        tuner.detach()
        return tuner

    def _trained(self) -> Weights:
        if self._weights is None:
            raise InputError(
                f"the run {self.name!r} has no adapter, since it failed ({self.failure}): allowed "
                "are runs whose failure is None, mend the cause and train it again"
            )
        return self._weights


def train_cohort(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    runs: Mapping[str, RunConfig] | Sequence[RunConfig],
    examples: Examples,
    *,
    validation: Examples | None = None,
    validate: ValidationSettings | None = None,
    adapter: str | Path | None = None,
    slots: int | Literal["auto"] = "auto",
    checkpoints: str | Path | None = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
) -> dict[str, RunResult]:
    """Train many runs at once over one frozen model, each as if it trained alone.

    Runs may differ in seed, arm, learning rate, length, rank, dropout and most other settings.
    Those that cannot share every step (of other batch sizes, LoRA targets or token limits, say)
    train in further cohorts, one after the other. A run that ends leaves its slot to the next.
    Where memory runs out, the runs go on in half the slots, and no step is lost.

    A run that fails says so in its result and costs the others nothing. Afterwards the model is
    what it was, bit for bit.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        runs: settings of the runs: a dictionary by names of your choice, or a list, whose runs are
            named by arm, seed and the settings in which they differ.
        examples: as :meth:`schemabank.Tuner.train` takes them, the same for all runs.
        validation: examples of the same kinds, for ``validation_loss``.
        validate: measure every run on them while it trains, to keep its best weights and to stop it
            early, each by its own losses alone.
        adapter: folder of a PEFT adapter that every run begins with, as
            :meth:`schemabank.Tuner.from_adapter` does; without it, runs begin with fresh weights.
        slots: how many runs train at once; ``auto`` is as many as fit and make it faster on a GPU,
            and one on a CPU.
        checkpoints: folder in which the runs are saved while they train, as their settings
            ``engine.checkpoint_minutes`` and ``engine.checkpoint_steps`` say. After an
            interruption, the same call goes on from there, and a run that has trained is not
            trained again. Remove the folder when you have saved what you want of the results.
        on_step: called with every step of every run, whose ``run`` is the run's name. What it
            raises ends the training of all runs.
        quiet: show no progress and no notes.

    Returns:
        A result for each run by its name, in the order of ``runs``.

    Raises:
        InputError: runs, examples, slots or an adapter that cannot be trained, or an address in
            place of a folder; nothing was trained then.
    """
    named, steps = named_runs(runs), KeptSteps(on_step)
    check_slots_and_validation(named, slots, validate, validated=validation is not None)
    folder = folder_of(checkpoints)
    saves = folder is not None
    tell_without_effect(named.values(), who=WHO, stacklevel=3, saves=saves)
    base, start = held_base(model, tokenizer), None
    if adapter is not None:
        start = load_adapter(Path(adapter))
        named = _continued(named, start, adapter, base)
    shown = as_examples(examples)
    used = {
        name: only_used(config, slots=slots, **(when_saved(config) if saves else {}))
        for name, config in named.items()
    }
    found: dict[str, RunResult] = {}
    with quiet_compiler(), reporter(quiet=quiet) as progress, ExitStack() as exits:
        place = ProgramFolder(folder, exits)
        given = _Given(validation, validate, start, held_model_digest(base) if saves else None)
        alike = sharing(list(dict.fromkeys(used.values())))
        groups = [_prepared(group, shown, base, progress, given) for group in alike]
        if len(groups) > 1:
            progress.note(APART.format(len(groups)))
        progress.runs({name: name for name in named})
        # All are planned, and have their folders, before any trains: an error in it must not cost
        # what has been trained.
        planned = [
            (_Attempt(trainees, group, steps, named), at_once)
            for group in groups
            for trainees, at_once in _planned(group, used, slots, place, steps)
        ]
        for attempt, at_once in planned:
            found |= attempt.results(at_once)
    return {name: found[name] for name in named}


@dataclass(frozen=True)
class _Given:
    """What a program gives beside runs and examples; the model's digest where runs are saved."""

    validation: Examples | None
    validate: ValidationSettings | None
    start: Adapter | None
    model: str | None


@dataclass(frozen=True)
class _Group:
    """Runs that share their data."""

    runs: Sequence[RunConfig]
    context: Context
    validation: Sequence[Encoded] | None
    validator: Validator | None


def _prepared(
    runs: Sequence[RunConfig],
    examples: Sequence[Example],
    base: BaseModel,
    progress: Reporter,
    given: _Given,
) -> _Group:
    """Make and check everything that can be wrong before any compute is spent."""
    for run in runs:
        check_tags(run, examples)
    data = held_data(examples, runs[0], base.tokenizer)
    check_runs(runs, examples, base, data)
    validation, validate = given.validation, given.validate
    tell_targets(runs, base, progress.note)
    asked = None if validation is None else validation_data(validation, runs[0], base)
    validator = None if validate is None or asked is None else Validator(validate, asked)
    begin = None if given.start is None else given.start.tensors
    held_out = asked or ()
    inputs = None
    if given.model is not None:
        inputs = held_digests(
            given.model, data, validation=held_out, validate=validate, start=begin
        )
    context = held_context(base, data, progress, start=begin, held_out=held_out, inputs=inputs)
    return _Group(runs, context, asked, validator)


def _planned(
    group: _Group,
    used: Mapping[str, RunConfig],
    slots: int | Literal["auto"],
    place: ProgramFolder,
    steps: KeptSteps,
) -> Iterator[tuple[list[Trainee], int]]:
    """Yield the runs that share a cohort, with their folders, and how many train at once."""
    context = group.context
    for plan, fitting in planned_cohorts(group.runs, context, context.base.model.device):
        own = [n for run in plan.runs for n, config in used.items() if config == run]
        at_once = min(len(own), slots) if slots != "auto" else fitting
        at_once, parts = place.parts({n: used[n] for n in own}, context, at_once)
        for part in parts:
            yield place.trainees(part, context, steps, group.validator), at_once


def _continued(
    named: Mapping[str, RunConfig], start: Adapter, folder: str | Path, base: BaseModel
) -> dict[str, RunConfig]:
    """Return the runs with an adapter's rank, scale and targets, once it fits the model."""
    found = {
        name: continued(run, start, folder, base.model, what=name) for name, run in named.items()
    }
    check_whole(base.model, start, folder)
    tuner_with(base, next(iter(found.values())), start.tensors).remove()
    return found


@dataclass(frozen=True)
class _Attempt:
    """The training of runs that share a cohort, whose failures are theirs alone."""

    trainees: Sequence[Trainee]
    group: _Group
    steps: KeptSteps
    named: Mapping[str, RunConfig]
    kept: dict[str, Weights] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    def results(self, slots: int) -> dict[str, RunResult]:
        """Train the runs, and return what has become of each."""
        try:
            self._train(slots)
        except FAILING as error:
            if error is self.steps.raised:
                raise
            for trainee in self.trainees:
                trainee.fail_with(error)
        for trainee in self.trainees:
            self._tell_end(trainee)
        return {trainee.name: self._result(trainee) for trainee in self.trainees}

    def _train(self, slots: int) -> None:
        group = self.group
        with ExitStack() as exits:
            with saving(self.trainees, group.context, self.steps, group.validator) as (log, follow):
                cohort = train_all(
                    self.trainees,
                    group.context,
                    slots=slots,
                    planned=[trainee.run for trainee in self.trainees],
                    open_log=log,
                    keep=self._keep,
                    follow=partial(self._follow, follow),
                )
                exits.callback(cohort.stack.remove)  # before a signal that came late is answered
            if group.validator is not None:
                group.validator.tell(cohort, group.context.reporter.note)
            if group.validation is not None:
                self._validate(cohort, group.validation)

    def _follow(self, follow: Callable[[Cohort], None], cohort: Cohort) -> None:
        follow(cohort)
        if self.group.validator is not None:
            self.group.validator.follow(cohort)

    def _keep(self, stack: AdapterStack, slot: int, trainee: Trainee) -> None:
        if trainee.failure is None:
            self.kept[trainee.name] = Weights.in_slot(stack, slot)

    def _validate(self, cohort: Cohort, examples: Sequence[Encoded]) -> None:
        """Measure the losses of the runs in the slots at once; adapters are kept already."""
        for part in seated(self.trainees, cohort.stack, cohort):
            try:
                with cohort.stack.evaluating("off"):
                    losses = mean_losses(cohort.stack, examples)
            except (RuntimeError, MemoryError) as error:
                for trainee in part:
                    trainee.fail(_unmeasured(error, cohort.stack.num_slots))
                continue
            for trainee, loss in zip(part, losses, strict=False):
                if trainee.failure is None:
                    self.losses[trainee.name] = loss
                    trainee.fail(None if isfinite(loss) else NOT_FINITE)

    def _tell_end(self, trainee: Trainee) -> None:
        failure, loss = trainee.failure, self.losses.get(trainee.name)
        state: Literal["finished", "failed"] = "finished" if failure is None else "failed"
        measured = "" if loss is None else f"validation loss {loss:.4f}"
        told = measured if failure is None else failure.message
        self.group.context.reporter.run_state(trainee.name, state, told)

    def _result(self, trainee: Trainee) -> RunResult:
        name, validator = trainee.name, self.group.validator
        return RunResult(
            name,
            self.named[name],
            tuple(self.steps.by_run[name]),
            trainee.failure,
            self.losses.get(name),
            trainee.rescaled,
            () if validator is None else tuple(validator.found[name]),
            self.kept.get(name),
            self.group.context.base,
        )


def _unmeasured(error: Exception, num_slots: int) -> Failure:
    """Return why runs have no validation loss, with what to lower where memory ran out."""
    failure = failure_of(error)
    if failure.kind != "memory":
        return failure
    return Failure(
        "memory",
        f"slots is {num_slots}, but the losses of so many runs at once on the validation examples "
        f"do not fit into the device's memory: lower it ({error})",
    )
