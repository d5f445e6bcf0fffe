"""The folders of a cohort's runs, and what lies in them already of a call that was interrupted.

A run whose training was over is only evaluated. What its evaluation had come to is computed again:
it takes little of the time, and all files of an evaluation then come from one process.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from shutil import rmtree

from schemabank.common.errors import InputError
from schemabank.common.waiting import Note
from schemabank.config.file import run_id, to_yaml
from schemabank.config.settings import RunConfig
from schemabank.runs.folder import (
    CONFIG,
    METRICS,
    STAGES,
    TRAINED,
    RunClaim,
    claimed,
    has_trained,
)
from schemabank.runs.members import Member
from schemabank.runs.trained import MadeWith, made_with, read_trained
from schemabank.runs.training import Context

OF_TRAINING = {CONFIG, METRICS, STAGES, TRAINED}


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
    """
    made = made_with(context.inputs, planned, context.base.model.device)
    return [
        _begun(run, exits.enter_context(claimed(out / run_id(run))), made, context.reporter.note)
        for run in runs
    ]


def write_settings(members: Sequence[Member]) -> None:
    """Write the settings of runs that are to be trained: the first file of each."""
    for member in members:
        if member.trained is None:
            member.write(partial(_write_config, member.run))


def _begun(run: RunConfig, claim: RunClaim, made: MadeWith, note: Note) -> Member:
    """Return a run with its folder, which holds its training or nothing."""
    member = Member(run_id(run), run, claim=claim)
    if has_trained(claim.path):
        try:
            member.trained = read_trained(claim.path, run, made)
        except (InputError, OSError) as error:
            aside = claim.begin_anew()
            note(f"trained again: {claim.final} ({error}); {aside.name} has what was there")
        else:
            member.write(_remove_evaluation)
            note(f"trained already: {claim.final} (same configuration), to be evaluated")
    return member


def _remove_evaluation(folder: Path) -> None:
    """Leave what an earlier call had trained, and nothing of how it went on."""
    for path in folder.iterdir():
        if path.name in OF_TRAINING:
            continue
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        else:
            path.unlink()


def _write_config(run: RunConfig, folder: Path) -> None:
    (folder / CONFIG).write_text(to_yaml(run), encoding="utf-8")
