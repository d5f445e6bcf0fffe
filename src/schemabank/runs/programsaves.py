"""A folder in which a program's runs are saved while they train, so that the same call goes on.

A program's runs have no folders by themselves. Here each has one, as a run of a configuration has:
its log, its checkpoints, and what it came to. Checkpoints go with the run's training. What it came
to stays until the program removes the folder: only the program knows when it has saved its results.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from schemabank.adapters.files import LoraTensors
from schemabank.common.errors import InputError, first_line
from schemabank.common.files import json_lines
from schemabank.common.folders import check_local
from schemabank.common.writing import mend_or
from schemabank.config.settings import RunConfig
from schemabank.config.validation import ValidationSettings
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.run import TrainingData
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.checkpointing import Checkpoints
from schemabank.runs.checkpoints import num_slots_of
from schemabank.runs.folder import METRICS, can_go_on, claimed, partial_folder, slug
from schemabank.runs.inmemory import KeptSteps
from schemabank.runs.inputs import Digests
from schemabank.runs.kept import MadeWith, made_with
from schemabank.runs.members import Member, Trainee, trained_before_s
from schemabank.runs.resuming import begun, write_settings
from schemabank.runs.steplogs import KeepingLogs, step_of_row
from schemabank.runs.training import Context, StepLog
from schemabank.runs.validating import Validator

DIGITS = 8  # of a hash that tells names apart whose letters no file name has
MEND = "choose another folder of checkpoints"
LONGEST = 40  # characters of a name in that of its folder, which may have 255 bytes in all

Opened = Callable[[Cohort], AbstractContextManager[StepLog]]
Follow = Callable[[Cohort], None]


@dataclass(frozen=True)
class ProgramFolder:
    """Where a program's runs are saved while they train.

    Attributes:
        path: of the folder; ``None``: nowhere.
        exits: ends the claims of the runs' own folders.
    """

    path: Path | None
    exits: ExitStack

    def parts(
        self, runs: Mapping[str, RunConfig], context: Context, planned: int
    ) -> tuple[int, list[dict[str, RunConfig]]]:
        """Return how many runs train at once, and which share a cohort.

        It is as before, if they go on, else as planned: all together, or where one trains at a
        time, each with a stack of its own, which is what a Tuner would have. With another number
        the last bits of a run that goes on would be others. Runs that memory has left one slot were
        a cohort, and go on as one.
        """
        whole, alone = [dict(runs)], [{name: run} for name, run in runs.items()]
        for parts in (whole, alone) if self.path is not None else ():
            kept = [self._num_slots(part, context) for part in parts]
            if found := [number for number in kept if number is not None]:
                return min(found), parts
        return planned, whole if planned > 1 else alone

    def _num_slots(self, runs: Mapping[str, RunConfig], context: Context) -> int | None:
        """How many slots the cohort of these very runs had, if some of them can go on."""
        assert self.path is not None
        found = list[int | None]()
        for name, run in runs.items():
            folder = partial_folder(self.path / _file_name(name))
            if can_go_on(folder):
                found.append(num_slots_of(folder, run, _made(runs.values(), context)))
        return min((number for number in found if number is not None), default=None)

    def trainees(
        self,
        runs: Mapping[str, RunConfig],
        context: Context,
        steps: KeptSteps,
        validator: Validator | None,
    ) -> list[Trainee]:
        """Give the runs of a cohort folders, and let them stand where an earlier call left them.

        Args:
            runs: by their names.
            context: what they share, with the digests of what this program gives.
            steps: gets the steps that were taken in earlier calls.
            validator: gets what was measured in earlier calls.

        Raises:
            InputError: a folder is in use, or cannot be written.
        """
        if self.path is None:
            return [Trainee(name, run) for name, run in runs.items()]
        made, found = _made(runs.values(), context), []
        for name, run in runs.items():
            claim = self.exits.enter_context(claimed(self.path / _file_name(name), mend=MEND))
            member = begun(name, run, claim, made, context.reporter.note)
            if member.begun is not None or member.trained is not None:
                rows = json_lines(claim.path / METRICS)
                steps.by_run[name] = [step_of_row(row) for _, row in rows]
            if validator is not None:
                validator.restore(name, member.records)
            found.append(member)
        write_settings(found)
        for member in found:
            if member.refused is not None:
                raise InputError(
                    f"the run {member.name!r} cannot be saved ({first_line(member.refused)}): "
                    f"{mend_or(member.refused, MEND)}"
                ) from member.refused
        return [*found]


def folder_of(checkpoints: str | Path | None) -> Path | None:
    """Return the folder that a program names for its runs' checkpoints.

    Raises:
        InputError: it is an address, such as of an object store.
    """
    if checkpoints is None:
        return None
    check_local(Path(checkpoints))
    return Path(checkpoints)


@contextmanager
def saving(
    trainees: Sequence[Trainee],
    context: Context,
    steps: KeptSteps,
    validator: Validator | None,
) -> Iterator[tuple[Opened, Follow]]:
    """Give what opens the log of a cohort and what follows it; runs with folders are saved."""
    members = [each for each in trainees if isinstance(each, Member)]
    if not members:
        yield steps.following, _follow_nothing
        return
    made = _made([member.run for member in members], context)
    began = time.monotonic() - trained_before_s(members)
    note, records = context.reporter.note, None if validator is None else validator.records
    with Checkpoints(members, made, began, note, records=records) as checkpoints:

        def logs(cohort: Cohort) -> KeepingLogs:
            return KeepingLogs(members, made, began, cohort, records=records, note=note)

        seen = checkpoints.seeing(logs)

        @contextmanager
        def opened(cohort: Cohort) -> Iterator[StepLog]:
            with seen(cohort) as saved, steps.following(cohort) as kept:
                yield _Both(saved, kept)

        yield opened, checkpoints.follow


def held_model_digest(base: BaseModel, *, but: AdapterStack | None = None) -> str:
    """Return the SHA-256 of a program's model.

    Args:
        base: the model.
        but: a stack on it, whose weights are not the model's own.
    """
    found = hashlib.sha256()
    groups = [] if but is None else but.groups.values()
    trained = {id(weight) for group in groups for weight in group.parameters.values()}
    for name, tensor in chain(base.model.named_parameters(), base.model.named_buffers()):
        if id(tensor) in trained:
            continue
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(_bytes_of(tensor))
    return found.hexdigest()


def held_digests(
    model: str,
    training: TrainingData,
    *,
    validation: Sequence[Encoded],
    validate: ValidationSettings | None,
    start: LoraTensors | None,
) -> Digests:
    """Return the SHA-256 of what a program gives to train on.

    Args:
        model: the model's own.
        training: the training data.
        validation: the validation examples.
        validate: when they are measured.
        start: an adapter to begin with.
    """
    adapter = hashlib.sha256()
    for path, pair in sorted((start or {}).items()):
        adapter.update(path.encode())
        for tensor in pair:
            adapter.update(_bytes_of(tensor))
    form = (training.beginning, training.completion_only)
    return {
        "model": model,
        "adapter": adapter.hexdigest(),
        "data": _digest_of(training.examples, training.encoded, form),
        "validation": _digest_of(validation),
        "validate": "" if validate is None else validate.model_dump_json(),
    }


def _made(runs: Collection[RunConfig], context: Context) -> MadeWith:
    """What runs that share a stack are trained with; one that has its own goes on alone."""
    made = made_with(context.inputs, list(runs), context.base.model.device)
    return {**made, "stack": "of several runs" if len(runs) > 1 else "of this run alone"}


class _Both:
    """Two places where steps go; the second may raise what a program's function raises."""

    def __init__(self, saved: StepLog, kept: StepLog) -> None:
        self._saved, self._kept = saved, kept

    def write(self, step: RunStep) -> None:
        self._saved.write(step)
        self._kept.write(step)


def _follow_nothing(_cohort: Cohort) -> None:
    """Let a cohort be."""


def _file_name(name: str) -> str:
    return f"{slug(name)[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:DIGITS]}"


def _digest_of(*parts: Iterable[object]) -> str:
    """The SHA-256 of values one by one, since those that lie in a file do not fit into memory."""
    found = hashlib.sha256()
    for part in parts:
        for value in part:
            found.update(f"{value!r}\n".encode())
        found.update(b"\n")
    return found.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, whatever its type and device."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
