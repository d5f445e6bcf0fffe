"""What is refused of runs before anything is loaded for them.

A call makes these checks one by one, in :mod:`schemabank.runs.experiment` or, for workers, in
:mod:`schemabank.launch.sharing`, and does something between them: it tidies finished runs up, and
it trains teachers. :func:`check_beforehand` makes the same checks in the same order for a plan, and
does nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemabank.common.folders import check_writable
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.runs.distill import TEACHERS, all_teachers
from schemabank.runs.folder import check_available, has_trained, is_finished, partial_folder
from schemabank.runs.inputs import Present, check_all_clusters, check_reusable
from schemabank.runs.locks import InUseError
from schemabank.runs.members import Outcome, finished_outcome
from schemabank.runs.progress import Reporter
from schemabank.runs.trackers import check_installed
from schemabank.tasks.catalog import check_extras


@dataclass(frozen=True)
class Pending:
    """What is still to be computed.

    Attributes:
        runs: ids of runs and of their teachers.
        in_use: what a call would refuse at this moment, since another one is writing some of them;
            it will not when that one has ended.
    """

    runs: frozenset[str]
    in_use: InUseError | None


def check_beforehand(
    runs: Sequence[RunConfig], out: Path, reporter: Reporter, *, shares: bool = False
) -> Pending:
    """Refuse what a call would refuse of runs and their teachers; nothing is written or started.

    Args:
        runs: their settings, resolved for this machine.
        out: folder of the runs.
        reporter: told what could not be compared.
        shares: whether the call shares its runs with others, which may be writing them now.

    Raises:
        InputError: a finished run is of other inputs, or of an older version; a place cannot be
            written; or a package is not installed.
    """
    folders = folders_of(runs, out)
    check_all_clusters(folders)
    return _pending(folders, out, reporter, shares=shares)


def folders_of(runs: Iterable[RunConfig], out: Path) -> dict[RunConfig, Path]:
    """Return where each run is, or is to be; to hash its settings takes long for thousands."""
    return {run: out / run_id(run) for run in runs}


def known_outcomes(
    folders: Mapping[RunConfig, Path], reporter: Reporter
) -> dict[RunConfig, Outcome]:
    """Return the outcomes of those runs that are finished, which are of the inputs there are now.

    Raises:
        InputError: one is of others, or cannot be read.
    """
    finished = {run: folder for run, folder in folders.items() if is_finished(folder)}
    outcomes = {run: finished_outcome(run, folder) for run, folder in finished.items()}
    check_all_reusable(outcomes, reporter)
    return outcomes


def check_all_reusable(finished: Mapping[RunConfig, Outcome], reporter: Reporter) -> None:
    """Make sure that finished runs are of the model and the data that are there now.

    Raises:
        InputError: one is of others.
    """
    now = Present()
    notes = [
        check_reusable(run, outcome.folder, outcome.result or {}, now)
        for run, outcome in finished.items()
    ]
    for note, count in Counter(filter(None, notes)).items():
        reporter.note(f"{count} of {len(finished)} reused runs: {note}")


def check_places(folders: Iterable[Path], *, shares: bool) -> None:
    """Make sure that runs can be written.

    Args:
        folders: of those that are still to be computed.
        shares: whether others may be writing them now.

    Raises:
        InUseError: another call is writing a run.
        InputError: a place cannot be written.
    """
    check = check_writable if shares else check_available
    for folder in folders:
        check(folder)


def check_packages(runs: Iterable[RunConfig]) -> None:
    """Make sure that the packages are there that the tasks of runs and their metrics need.

    Raises:
        InputError: one is not installed.
    """
    for run in runs:
        check_extras(run.task)


def _pending(
    folders: Mapping[RunConfig, Path], out: Path, reporter: Reporter, *, shares: bool
) -> Pending:
    known = known_outcomes(folders, reporter)
    left = {run: folder for run, folder in folders.items() if run not in known}
    in_use = None
    try:
        check_places(left.values(), shares=shares)
    except InUseError as error:
        in_use = error
    check_packages(left)
    check_installed(left)
    names = frozenset(folder.name for folder in left.values())
    # Whether what is kept of a training can be used is known with model and data alone.
    asking = [run for run, folder in left.items() if not has_trained(partial_folder(folder))]
    if teachers := all_teachers(asking):
        place = out / TEACHERS
        more = _pending(folders_of(teachers, place), place, reporter, shares=shares)
        return Pending(names | more.runs, in_use or more.in_use)
    return Pending(names, in_use)
