"""What a run has come to by its training, on disk until the run is evaluated.

A cohort trains for minutes or hours and evaluates afterwards. So a run's weights are written when
its own steps are over, and a process that is ended later, however it is ended, does not cost them:
the next call evaluates them without training them again. They are what training left, in float32,
before a scale is chosen, so that what follows is the same computation on the same bits.

Digests of all files of the run lie beside the weights, and what the run was trained with. A folder
in which one byte or one input is another is not taken for this run.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from schemabank.adapters.tensorfiles import read_tensors
from schemabank.common.errors import InputError
from schemabank.common.failure import FAILING
from schemabank.common.files import check_regular, read_bytes, read_json
from schemabank.common.folders import new_folder
from schemabank.common.writing import sync_to_disk, write_json, writing_tensors
from schemabank.config.settings import RunConfig
from schemabank.engine.slots import Slot
from schemabank.engine.stack import AdapterStack
from schemabank.runs.folder import CONFIG, METRICS, TRAINED
from schemabank.runs.kept import (
    DIGESTS,
    MEND,
    STATE,
    WEIGHTS,
    MadeWith,
    check_made,
    check_settings,
    digests,
    kept_file,
    read_stored,
    stage_files,
)
from schemabank.runs.resultshape import StoredPart

AGAIN = "call again, which evaluates the run if the file is whole by then, else trains it again"
Records = Callable[[str], Mapping[str, Any]]
"""Tells what else is known of a run, by its name, as JSON has it."""


class _State(StoredPart):
    made_with: dict[str, Any]
    num_steps: int
    skipped: list[int]
    num_updates: dict[str, int]
    training_s: float
    taken: int | None = None
    records: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a run that lie in its folder, for who does not hold them.

    Attributes:
        path: of their file.
        sha256: of the file.
        num_bytes: that it has.
        shapes: of the weights.
    """

    path: Path
    sha256: str
    num_bytes: int
    shapes: Mapping[str, tuple[int, ...]]

    def read(self) -> dict[str, Tensor]:
        """Read them into memory; what becomes of the file then does not matter.

        Unlike a reader that maps the file into memory, this one cannot be killed by a file that is
        cut, or by a disk that fails, after it was looked at.

        Raises:
            InputError: the file is gone, cannot be read, or is another than was written.
        """
        # The failure's file may be moved with the run's folder, so no place outside of it is named.
        named = str(Path(*self.path.parts[-3:]))
        try:
            check_regular(self.path)
            content = read_bytes(self.path, at_most=self.num_bytes)
        except InputError as error:
            if isinstance(cause := error.__cause__, OSError):
                raise InputError(f"cannot read {named!r} ({cause.strerror}): {AGAIN}") from cause
            content = b""  # it is a folder, say, or larger
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError(
                f"{named!r} is not what was written, allowed is the whole file: {AGAIN}"
            )
        return load(content)

    def holds(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether reading them gives these weights to the bit."""
        try:
            found = self.read()
        except (*FAILING, SafetensorError):
            return False
        return found.keys() == weights.keys() and all(
            torch.equal(found[name].view(torch.uint8), row.contiguous().view(torch.uint8))
            for name, row in weights.items()
        )


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one answer
class TrainedState:
    """A run whose steps are over.

    Attributes:
        weights: that it ended as, a row for each group; see ``Cohort.finished``. Without any, they
            are ``stored``.
        num_steps: how many steps it had.
        skipped: those that changed nothing.
        num_updates: how often each group of weights was updated.
        training_s: how long its cohort had been training.
        taken: after how many of the steps it was stopped; ``None``: it took all.
        records: what else is known of it, as JSON has it.
        stored: where its weights are on disk, if they are.
    """

    weights: Mapping[str, Tensor]
    num_steps: int
    skipped: Sequence[int]
    num_updates: Mapping[str, int]
    training_s: float
    taken: int | None = None
    records: Mapping[str, Any] = field(default_factory=dict)
    stored: StoredWeights | None = None

    @classmethod
    def of(
        cls,
        slot: Slot,
        weights: Mapping[str, Tensor],
        *,
        training_s: float,
        records: Mapping[str, Any] | None = None,
    ) -> "TrainedState":
        """Take it from the slot of a run that has ended."""
        taken = slot.step if slot.stopped else None
        counted = (slot.num_steps, slot.skipped, slot.num_updates)
        return cls(weights, *counted, training_s, taken, records or {})

    @property
    def is_finite(self) -> bool:
        """Whether it can be evaluated."""
        return all(bool(row.isfinite().all()) for row in self.weights.values())

    def without_weights(self) -> "TrainedState":
        """Return it without the weights, which are stored."""
        assert self.stored is not None
        return replace(self, weights={})

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes_of(self.weights) if self.stored is None else dict(self.stored.shapes)

    def tell(self, slot: Slot, stack: AdapterStack, folder: Path) -> None:
        """Let a new slot of the run stand where its training ended.

        Args:
            slot: of the run.
            stack: in which it will be evaluated.
            folder: of the run, for the error.

        Raises:
            InputError: the run has other steps, or the stack other weights.
        """
        own = (self.num_steps, self._shapes)
        allowed = (slot.num_steps, {name: (group.size,) for name, group in stack.groups.items()})
        if own != allowed:
            raise InputError(
                f"steps and weights that are kept of {slot.run.name} are {own}, allowed are "
                f"{allowed}: remove the folder '{folder.name}/{TRAINED}'"
            )
        slot.step = slot.num_steps if self.taken is None else self.taken
        slot.stopped, slot.skipped = self.taken is not None, list(self.skipped)
        slot.num_updates = Counter(self.num_updates)


def write_trained(folder: Path, trained: TrainedState, made: MadeWith) -> StoredWeights:
    """Write what a run has come to into its folder, whole or not at all.

    Args:
        folder: of the run, with its settings, its steps and the stages that it keeps.
        trained: the run.
        made: what it was trained with.

    Returns:
        Where its weights are.

    Raises:
        InputError: it is there already.
        OSError: it cannot be written.
    """
    with new_folder(folder / TRAINED) as partial:
        rows = {name: row.contiguous() for name, row in trained.weights.items()}
        with writing_tensors(partial / WEIGHTS) as path:
            save_file(rows, path)
        state = {
            "made_with": made,
            "num_steps": trained.num_steps,
            "skipped": list(trained.skipped),
            "num_updates": dict(sorted(trained.num_updates.items())),
            "training_s": trained.training_s,
            "taken": trained.taken,
            "records": dict(trained.records),
        }
        write_json(partial / STATE, state)
        found = _digests(folder, partial)
        write_json(partial / DIGESTS, found)
        num_bytes = (partial / WEIGHTS).stat().st_size
        # What the digests are of has to outlive a power cut, too: no checkpoint is kept beside it.
        for path in (folder / METRICS, folder / CONFIG, folder, folder.parent):
            sync_to_disk(path)
    place = folder / TRAINED / WEIGHTS
    return StoredWeights(place.absolute(), found[WEIGHTS], num_bytes, _shapes_of(trained.weights))


def read_trained(folder: Path, run: RunConfig, made: MadeWith) -> TrainedState:
    """Read what a run has come to, if it is whole and would be the same today.

    Args:
        folder: of the run.
        run: its settings.
        made: what it would be trained with now.

    Raises:
        InputError: a file is missing or another than was written, or the run was trained with other
            settings, inputs or versions.
        OSError: it cannot be read.
    """
    place = folder / TRAINED
    found = _digests(folder, place)
    if read_json(kept_file(place, DIGESTS)) != found:
        raise InputError(
            f"{str(folder)!r} is not what was written, allowed are whole files: {MEND}"
        )
    check_settings(folder, run, is_over=True)
    state = read_stored(place / STATE, _State)
    check_made(folder, state.made_with, made)
    weights = read_tensors(place / WEIGHTS, mend=MEND, check=lambda _: None)
    num_bytes = (place / WEIGHTS).stat().st_size
    stored = StoredWeights(
        (place / WEIGHTS).absolute(), found[WEIGHTS], num_bytes, _shapes_of(weights)
    )
    counted = (state.num_steps, state.skipped, state.num_updates)
    return TrainedState(weights, *counted, state.training_s, state.taken, state.records, stored)


def _shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(row.shape) for name, row in weights.items()}


def _digests(folder: Path, place: Path) -> dict[str, str]:
    """The SHA-256 of every file that an evaluated run keeps of its training, and of ``place``."""
    own = digests(folder, (CONFIG, METRICS, *stage_files(folder)))
    return {**own, **digests(place, (WEIGHTS, STATE))}
