"""Where a run stands in the middle of its training, on disk until its training is over.

A checkpoint is a folder with tensors, numbers and, written last, digests of both, of the run's
settings and of what it kept of its stages. It appears under its name whole or not at all. The run's
log is not copied: the checkpoint knows its length and digest at that step, and going on cuts off
what came later.

Each run of a cohort has checkpoints of its own, since what a run computes does not depend on its
neighbours: whichever of them can go on does. A checkpoint in which one byte or one input is
another is not taken, nor is one of another version of this format.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from schemabank.adapters.tensorfiles import Header, read_tensors
from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.common.folders import new_folder, remove_tree
from schemabank.common.growing import GrowingDigest
from schemabank.common.writing import sync_to_disk, write_json, writing_tensors
from schemabank.config.settings import RunConfig
from schemabank.engine.keeping import Standing
from schemabank.engine.slots import STATE as ROWS
from schemabank.engine.slots import Carried, Slot, SlotState
from schemabank.engine.stack import AdapterStack
from schemabank.runs.folder import CHECKPOINTS, CONFIG, METRICS
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
from schemabank.runs.resultshape import Count, StoredPart

VERSION = 1
AVERAGE, ORIGIN, CHOSEN = "average", "origin", "chosen"  # beside ROWS, kinds of tensors
NAME, NAMED = "step-", re.compile(r"step-[0-9]{1,18}\Z")
MOST_KEPT = 2  # the newest, and one for when that is damaged

Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Numbers(StoredPart):
    version: Literal[1]
    made_with: dict[str, Any]
    stages: list[Annotated[str, Field(pattern=r"^\w[\w.-]*$")]]
    step: Annotated[int, Field(ge=1)]
    num_steps: Count
    skipped: list[Count]
    skipped_in_row: Count
    num_updates: dict[str, Count]
    seat: Count | None
    tick: Count
    num_slots: Annotated[int, Field(ge=1)]
    num_tokens: Count
    training_s: Number
    log_bytes: Count
    log_sha256: str
    records: dict[str, Any]


@dataclass(frozen=True)
class At:
    """When a checkpoint is made, beside the run's own progress.

    Attributes:
        tick: where the cohort stands in the schedule of its steps.
        num_slots: of the cohort.
        num_tokens: that the run has seen.
        training_s: how long its cohort has been training.
        log_bytes: the length of the run's log.
        stages: names of the folders of the stages that it has kept.
        records: what else is known of the run, as JSON has it.
    """

    tick: int
    num_slots: int
    num_tokens: int
    training_s: float
    log_bytes: int
    stages: tuple[str, ...] = ()
    records: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one answer
class Begun:
    """A run in the middle of its training, as it was read.

    Attributes:
        standing: where it stands.
        at: when that was.
        made: what it was trained with.
    """

    standing: Standing
    at: At
    made: MadeWith = field(default_factory=dict)

    def tell(self, slot: Slot, stack: AdapterStack, folder: Path) -> Carried:
        """Let a new slot of the run stand there, and return what its optimizers held.

        Args:
            slot: of the run.
            stack: in which it will train.
            folder: of the run, for the error.

        Raises:
            InputError: the run has other steps, or the stack other weights.
        """
        state, rows = self.standing.state, self.standing.rows
        found = (state.num_steps, _shapes(_tensors(self.standing)))
        allowed = (slot.num_steps, _shapes_of(slot, stack, state))
        if found != allowed:
            raise InputError(
                f"steps and tensors in the checkpoint of {slot.run.name} are {found!r:.300}, "
                f"allowed are {allowed!r:.300}: remove the folder '{folder.name}/{CHECKPOINTS}'"
            )
        slot.restore(state)
        return rows

    def without_rows(self) -> "Begun":
        """Return it without its tensors, for who still asks where it stood."""
        state = replace(self.standing.state, chosen=None, origin=None)
        return replace(self, standing=replace(self.standing, state=state, rows={}))


def write_checkpoint(
    folder: Path,
    standing: Standing,
    at: At,
    made: MadeWith,
    *,
    log: GrowingDigest | None = None,
) -> None:
    """Write where a run stands, whole or not at all, and keep one older checkpoint.

    Args:
        folder: of the run; its log has all lines up to here.
        standing: where it stands.
        at: when that is.
        made: what it is trained with.
        log: knows what earlier checkpoints have read of the run's log; without it all is read.

    Raises:
        InputError: there is one of this step.
        OSError: it cannot be written.
    """
    state = standing.state
    is_first = not (folder / CHECKPOINTS).exists()
    sync_to_disk(folder / METRICS)
    numbers = {
        "version": VERSION,
        "made_with": made,
        "seat": standing.seat,
        "log_sha256": (log or GrowingDigest(folder / METRICS)).of(at.log_bytes),
        **{name: getattr(state, name) for name in _Numbers.model_fields if hasattr(state, name)},
        **vars(at),
    }
    with new_folder(folder / CHECKPOINTS / f"{NAME}{state.step}") as partial:
        tensors = {name: row.contiguous() for name, row in _tensors(standing).items()}
        with writing_tensors(partial / WEIGHTS) as path:
            save_file(tensors, path)
        write_json(partial / STATE, numbers)
        write_json(partial / DIGESTS, _digests(folder, partial, at.stages))
    for path in (folder / CONFIG, folder, folder.parent) if is_first else ():
        sync_to_disk(path)
    keep_only(folder, [path.name for path in _places(folder)[:MOST_KEPT]])


def checkpoints_in(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first; what they hold is checked elsewhere."""
    top = folder / CHECKPOINTS
    leads_elsewhere = folder.is_symlink() or top.is_symlink()
    return [] if leads_elsewhere else _places(folder)


def read_checkpoint(place: Path, run: RunConfig, made: MadeWith) -> Begun:
    """Read a checkpoint, if it is whole and would be the same now.

    Args:
        place: the checkpoint, in the run's folder.
        run: its settings.
        made: what it would be trained with now.

    Raises:
        InputError: a file is missing or another than was written, or the run was trained with other
            settings, inputs or versions.
        OSError: it cannot be read.
    """
    folder = place.parents[1]
    state = _read_state(place, run, made)
    log = kept_file(folder, METRICS)
    if (
        read_json(kept_file(place, DIGESTS)) != _digests(folder, place, state.stages)
        or log.stat().st_size < state.log_bytes
        or GrowingDigest(log).of(state.log_bytes) != state.log_sha256
    ):
        raise InputError(f"{str(place)!r} is not what was written, allowed are whole files")
    _check_progress(place, state)
    tensors = read_tensors(place / WEIGHTS, mend=MEND, check=_check_names, finite=False)
    by_kind: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, group = name.partition(".")
        by_kind.setdefault(kind, {})[group] = tensor
    kinds = [kind for kind in (*ROWS, AVERAGE) if kind in by_kind]
    rows = {
        group: [by_kind[kind][group] for kind in kinds if group in by_kind[kind]]
        for group in by_kind.get(ROWS[0], {})
    }
    slot = SlotState(
        state.step,
        state.num_steps,
        tuple(state.skipped),
        state.skipped_in_row,
        state.num_updates,
        chosen=by_kind.get(CHOSEN),
        origin=by_kind.get(ORIGIN),
    )
    at = {name: getattr(state, name) for name in At.__dataclass_fields__}
    stood = At(**{**at, "stages": tuple(state.stages)})
    return Begun(Standing(slot, rows, state.seat), stood, state.made_with)


def num_slots_of(folder: Path, run: RunConfig, made: MadeWith) -> int | None:
    """Return how many slots the cohort had in which a run can go on; ``None``: it cannot."""
    for place in checkpoints_in(folder):
        try:
            return _read_state(place, run, made).num_slots
        except (InputError, OSError):  # said when the run is claimed
            continue
    return None


def keep_only(folder: Path, names: list[str]) -> None:
    """Remove from a run's folder all checkpoints but these, and what was left half-written."""
    top = folder / CHECKPOINTS
    for path in top.iterdir() if top.is_dir() else ():
        if path.name not in names:
            remove_tree(path)  # what stays is removed with the run's training


def _read_state(place: Path, run: RunConfig, made: MadeWith) -> _Numbers:
    folder = place.parents[1]
    found = read_json(kept_file(place, STATE)).get("version")
    if found != VERSION:
        raise InputError(
            f"{str(place)!r} has version {found!r:.20} of checkpoints, allowed is {VERSION}: {MEND}"
        )
    state = read_stored(place / STATE, _Numbers)
    check_settings(folder, run, is_over=False)
    check_made(place, state.made_with, made)
    return state


def _check_progress(place: Path, state: _Numbers) -> None:
    """Refuse numbers that no run can come to."""
    skipped = state.skipped
    if (
        state.step > state.num_steps
        or skipped != sorted(set(skipped))
        or not all(step < state.step for step in skipped)
        or state.skipped_in_row > len(skipped)
        or any(number > state.step for number in state.num_updates.values())
    ):
        raise InputError(f"{str(place / STATE)!r} holds steps that do not fit together: {MEND}")


def _check_names(found: Mapping[str, Header]) -> None:
    """Refuse tensors of a kind or type that no checkpoint has."""
    for name, header in found.items():
        kind, _, group = name.partition(".")
        if kind not in {*ROWS, AVERAGE, ORIGIN, CHOSEN} or not group or header.dtype != "F32":
            raise InputError(
                f"a checkpoint holds {name!r} in {header.dtype}, allowed are "
                f"{', '.join((*ROWS, AVERAGE, ORIGIN, CHOSEN))} of a group in F32: {MEND}"
            )


def _tensors(standing: Standing) -> dict[str, Tensor]:
    """All tensors by kind and group."""
    found = {
        f"{kind}.{group}": row
        for group, rows in standing.rows.items()
        for kind, row in zip((*ROWS, AVERAGE), rows, strict=False)
    }
    for kind, rows in ((ORIGIN, standing.state.origin), (CHOSEN, standing.state.chosen)):
        found |= {f"{kind}.{group}": row for group, row in (rows or {}).items()}
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items())}


def _shapes_of(slot: Slot, stack: AdapterStack, state: SlotState) -> dict[str, tuple[int, ...]]:
    """The tensors that a run has in a state, with their shapes."""
    found: dict[str, tuple[int, ...]] = {}
    starts = slot.course.branch_starts
    for name, group in stack.groups.items():
        found |= {f"{kind}.{name}": (1 if kind == "step" else group.size,) for kind in ROWS}
        if slot.is_averaged and name in stack.lora.groups:
            found[f"{AVERAGE}.{name}"] = (group.size,)
        # Before the first branch it has one where memory ran out in the branch's first step.
        begins = bool(starts) and state.step == starts[0] and state.origin is not None
        if starts and (state.step > starts[0] or begins) and name in stack.lora.groups:
            found[f"{ORIGIN}.{name}"] = (group.size,)
        if state.chosen is not None:  # which a run may or may not have by then
            found[f"{CHOSEN}.{name}"] = (group.size,)
    return dict(sorted(found.items()))


def _digests(folder: Path, place: Path, stages: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of a checkpoint's files, the run's settings and what it has kept of stages."""
    of_run = digests(folder, (CONFIG, *stage_files(folder, stages)))
    return {**of_run, **digests(place, (WEIGHTS, STATE))}


def _places(folder: Path) -> list[Path]:
    """The folders of checkpoints, the newest first."""
    top = folder / CHECKPOINTS
    named = [path for path in (top.iterdir() if top.is_dir() else ()) if NAMED.match(path.name)]
    found = [path for path in named if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix(NAME)))
