"""What a call refuses of its runs before it loads anything for them; a plan refuses the same."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from schemabank.common.folders import check_writable
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.runs.distill import TEACHERS, all_teachers
from schemabank.runs.folder import check_available, has_trained, is_finished, partial_folder
from schemabank.runs.inputs import Present, check_all_clusters, check_reusable
from schemabank.runs.members import Outcome, finished_outcome
from schemabank.runs.progress import Reporter
from schemabank.runs.trackers import check_installed
from schemabank.tasks.catalog import check_extras


def check_beforehand(
    runs: Sequence[RunConfig], out: Path, reporter: Reporter, *, shares: bool = False
) -> list[RunConfig]:
    """Refuse what a call would refuse of runs and their teachers; nothing is written.

    Args:
        runs: their settings, resolved for this machine.
        out: folder of the runs.
        reporter: told what could not be compared.
        shares: whether the call shares its runs with others, which may be writing them now.

    Returns:
        Those of the runs and their teachers that are still to be computed.

    Raises:
        InputError: a finished run is of other inputs, or of an older version; a place cannot be
            written; or a package is not installed.
    """
    check_all_clusters(runs, out)
    return _checked(runs, out, reporter, shares=shares)


def known_outcomes(
    runs: Sequence[RunConfig], out: Path, reporter: Reporter
) -> dict[RunConfig, Outcome]:
    """Return the outcomes of those runs that are finished, which are of the inputs there are now.

    Raises:
        InputError: one is of others, or cannot be read.
    """
    finished = [run for run in runs if is_finished(out / run_id(run))]
    outcomes = {run: finished_outcome(run, out / run_id(run)) for run in finished}
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


def _checked(
    runs: Sequence[RunConfig], out: Path, reporter: Reporter, *, shares: bool
) -> list[RunConfig]:
    known = known_outcomes(runs, out, reporter)
    pending = [run for run in runs if run not in known]
    for run in pending:
        (check_writable if shares else check_available)(out / run_id(run))
    for run in pending:
        check_extras(run.task)
    check_installed(pending)
    # Whether what is kept of a training can be used is known with model and data alone.
    asking = [run for run in pending if not has_trained(partial_folder(out / run_id(run)))]
    if teachers := all_teachers(asking):
        pending += _checked(teachers, out / TEACHERS, reporter, shares=shares)
    return pending
