"""The folders of a cohort's runs, and what lies in them already of a call that was interrupted.

A run whose training was over is only evaluated, from the answers on that are kept of it
(:mod:`schemabank.runs.answers`); all files of an evaluation come from one process. A run that was
in the middle of its training goes on from its newest checkpoint that is whole.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.openfiles import allow_open_files
from schemabank.common.waiting import Note
from schemabank.common.writing import cut_file
from schemabank.config.file import run_id, to_yaml
from schemabank.config.settings import RunConfig
from schemabank.engine.planner import plan_cohorts
from schemabank.runs.checkpoints import (
    Begun,
    checkpoints_in,
    keep_only,
    num_slots_of,
    read_checkpoint,
)
from schemabank.runs.distill import TEACHERS, digests_of_teachers
from schemabank.runs.folder import (
    ANSWERS,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    STAGES,
    TRAINED,
    RunClaim,
    can_go_on,
    claimed,
    has_answered,
    has_trained,
    partial_folder,
)
from schemabank.runs.kept import MEND, MadeWith, made_with, other_processor
from schemabank.runs.members import Member
from schemabank.runs.trained import read_trained
from schemabank.runs.training import Context

OF_TRAINING = {CONFIG, METRICS, STAGES, TRAINED, ANSWERS}
WITHOUT_TRAINING = {CONFIG, ANSWERS}
BEFORE_ITS_END = {CONFIG, METRICS, STAGES, CHECKPOINTS}


def claimed_members(
    runs: Sequence[RunConfig],
    context: Context,
    out: Path,
    exits: ExitStack,
    *,
    planned: Sequence[RunConfig],
) -> list[Member]:
    """Claim the folders of runs, and read which of the runs have trained already.

    Args:
        runs: that share a cohort.
        context: what all runs share.
        out: folder of the runs.
        exits: ends the claims.
        planned: these runs and those of their cohort that are finished already.

    Raises:
        InputError: a folder cannot be had, or not so many at once.
    """
    allow_open_files(
        len(runs),
        what=f"a cohort of {len(runs):,} runs, each with a lock,",
        mend="raise that (`ulimit -Hn`), or set engine.slots to 1 for cohorts of one run",
    )
    made = made_with(context.inputs, planned, context.base.model.device)
    found = []
    for run in runs:
        claim = exits.enter_context(claimed(out / run_id(run), tenure=context.tenure))
        taught = _taught(run, out)
        found.append(begun(run_id(run), run, claim, made, context.reporter.note, taught=taught))
    return found


def still_taught(
    runs: Sequence[RunConfig],
    shared: Sequence[tuple[Sequence[RunConfig], Context]],
    out: Path,
) -> list[RunConfig]:
    """Return the runs that are still to learn; one that has trained asks its teachers no more.

    Args:
        runs: their settings.
        shared: all planned runs in groups that share a context, with it.
        out: folder of the runs.
    """
    asking, trained = {run for run in runs if run.num_teachers}, set[RunConfig]()
    for group, context in shared:
        for plan in plan_cohorts(group):
            own = [run for run in plan.runs if run in asking]
            trained |= {r for r in own if _is_only_evaluated(r, context, out, planned=plan.runs)}
    return [run for run in runs if run not in trained]


def _is_only_evaluated(
    run: RunConfig, context: Context, out: Path, *, planned: Sequence[RunConfig]
) -> bool:
    """Whether a run's training is over and kept, so that nothing of it is computed again."""
    folder = partial_folder(out / run_id(run))
    if not has_trained(folder):
        return False
    made = made_with(context.inputs, planned, context.base.model.device)
    try:
        read_trained(folder, run, made)
    except (InputError, OSError):  # said when the run is claimed
        return False
    return True


def slots_to_go_on(
    runs: Sequence[RunConfig],
    context: Context,
    out: Path,
    *,
    planned: Sequence[RunConfig],
    slots: int,
) -> int:
    """Return in how many slots a cohort trains: as before it was interrupted, if that is known.

    Where the number follows from the free memory, it may be another one by now, and with another
    one the last bits of a run that goes on are others.

    Args:
        runs: of the cohort that are not finished.
        context: what all runs share.
        out: folder of the runs.
        planned: these runs and those of their cohort that are finished already.
        slots: how many there would be.
    """
    folders = {run: partial_folder(out / run_id(run)) for run in runs}
    going = {run: folder for run, folder in folders.items() if can_go_on(folder)}
    made = made_with(context.inputs, planned, context.base.model.device) if going else {}
    kept = [num_slots_of(p, run, {**made, **_taught(run, out)}) for run, p in going.items()]
    found = min((number for number in kept if number is not None), default=slots)
    if found == slots or found > len(planned):
        return slots
    context.reporter.note(f"{found} runs at once, as before the call was interrupted")
    return found


def write_settings(members: Sequence[Member]) -> None:
    """Write the settings of runs that are to be trained: the first file of each."""
    for member in members:
        if member.trained is None and member.begun is None:
            member.write(partial(_write_config, member.run))


def begun(
    name: str,
    run: RunConfig,
    claim: RunClaim,
    made: MadeWith,
    note: Note,
    *,
    taught: Mapping[str, Any] | None = None,
) -> Member:
    """Return a run with its folder, which holds its training, or a part of it, or nothing.

    Args:
        name: by which its cohort knows it.
        run: its settings.
        claim: its folder.
        made: what its cohort would be trained with now.
        note: told where it goes on, or why it cannot.
        taught: what it alone would be trained with beside that, which one that has trained needs no
            more.
    """
    member = Member(name, run, claim=claim, taught=taught or {})
    if has_trained(claim.path):
        try:
            member.trained = read_trained(claim.path, run, made).without_weights()
        except (InputError, OSError) as error:
            _begin_anew(member, error, note)
        else:
            member.write(partial(_remove_all_but, OF_TRAINING))
            note(f"trained already: {claim.final} (same configuration), to be evaluated")
    elif not run.trains and has_answered(claim.path):
        member.write(partial(_remove_all_but, WITHOUT_TRAINING))
    elif can_go_on(claim.path):
        _go_on(member, {**made, **member.taught}, note)
    return member


def _taught(run: RunConfig, out: Path) -> dict[str, Any]:
    """The adapters that a run learns from, as far as they are there."""
    found = digests_of_teachers(run, out / TEACHERS)
    return {"teachers": found} if found else {}


def _go_on(member: Member, made: MadeWith, note: Note) -> None:
    """Read the newest checkpoint of a run that is whole, and remove what came after it."""
    folder, errors = member.claim.path, list[Exception]()
    for place in checkpoints_in(folder):
        try:
            found = read_checkpoint(place, member.run, made)
        except (InputError, OSError) as error:
            errors.append(error)
            continue
        member.begun = found
        member.write(partial(_remove_later, found, place.name))
        state = found.standing.state
        said = f"resumed at step {state.step} of {state.num_steps}: {member.claim.final}"
        lost = [str(error).removesuffix(f": {MEND}") for error in errors]
        note(f"{said} (a newer checkpoint is not used: {'; '.join(lost)})" if lost else said)
        if other := other_processor(found.made, made):
            note(f"{member.claim.final}: {other}")
        return
    _begin_anew(member, errors[0] if errors else None, note)


def _begin_anew(member: Member, error: Exception | None, note: Note) -> None:
    """Keep aside what cannot be gone on with; without an error it is nothing to speak of."""
    aside = member.claim.begin_anew()
    if error is not None:
        found = f"{member.claim.final} ({error}); {aside.name} has what was there"
        note(f"trained again: {found}")


def _remove_later(found: Begun, name: str, folder: Path) -> None:
    """Leave what a run had written up to a checkpoint, and nothing of how it went on."""
    keep_only(folder, [name])
    _remove_all_but(BEFORE_ITS_END if found.at.stages else BEFORE_ITS_END - {STAGES}, folder)
    if found.at.stages:
        _remove_all_but(found.at.stages, folder / STAGES)
    cut_file(folder / METRICS, found.at.log_bytes)


def _remove_all_but(names: Collection[str], folder: Path) -> None:
    for path in folder.iterdir():
        if path.name in names and not path.is_symlink():
            continue
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        else:
            path.unlink()


def _write_config(run: RunConfig, folder: Path) -> None:
    (folder / CONFIG).write_text(to_yaml(run), encoding="utf-8")
