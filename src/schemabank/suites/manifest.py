"""``suite.json``: which run of a folder is which, and how the learning rates were chosen.

A suite may grow. It may not lose a run or change its declared contrast. Once its final runs are
settled, the way their learning rates were chosen may not change either.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.failure import read_failure
from schemabank.common.folders import make_folder, missing_parents, remove_empty, writing_in
from schemabank.common.waiting import Note
from schemabank.common.writing import whole_file, write_json
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.runs.folder import MEND, SUITE, check_available
from schemabank.runs.inputs import Present, recorded_in, why_no_longer
from schemabank.runs.members import Outcome
from schemabank.runs.stored import read_suite
from schemabank.suites.file import SEARCH_SPLIT, Suite, TuneSettings
from schemabank.suites.ratesearch import RateSearch, trials

Manifest = Mapping[str, Any]


def read_manifest(out: Path) -> Manifest | None:
    """Read a folder's ``suite.json``; ``None`` if it has none."""
    path = out / SUITE
    return read_suite(path) if path.exists() else None


class SettledTrials:
    """The trials of a folder that have diverged, and would diverge again.

    A run that diverged is tried again if its weights or data have changed since.

    Args:
        out: the suite's folder.
        note: told why a trial that has diverged is tried again, once.
    """

    def __init__(self, out: Path, note: Note) -> None:
        self._diverged, self._note, self._now = _diverged_trials(out), note, Present()
        self._changed: dict[str, str | None] = {}

    def get(self, run: RunConfig) -> Outcome | None:
        """Return a trial's outcome, if it is settled."""
        name = run_id(run)
        known = self._diverged.get(name)
        if known is None:
            return None
        if name not in self._changed:
            self._changed[name] = why_no_longer(known.inputs, run, self._now)
            if self._changed[name] is not None:
                self._note(
                    f"tuning run {name}, which diverged, is tried again: {self._changed[name]}"
                )
        return known if self._changed[name] is None else None


def check_manifest(out: Path, suite: Suite) -> None:
    """Check, before anything is computed, that a folder is this suite's or may become its.

    Raises:
        InputError: it belongs to another suite, or cannot be written.
    """
    known = read_manifest(out)
    check_available(out / SUITE)
    if known is None:
        return
    contrast = _declared_contrast(suite)
    if known["contrast"] is not None and known["contrast"] != contrast:
        raise InputError(
            f"contrast is {contrast}, but the suite in {str(out)!r} declared {known['contrast']}: "
            "allowed is what was declared before the runs, restore it or choose another --out"
        )
    if known["runs"]:
        _check_tuning(out, known.get("tuning"), suite)
    if suite.tune is None:
        _check_grows(out, known["runs"], suite.rows())


def write_manifest(out: Path, suite: Suite, found: RateSearch | None) -> None:
    """Write which run is which, as far as that is settled.

    Args:
        out: the suite's folder, checked by :func:`check_manifest`.
        suite: the suite; where the search has made its choices, with the final runs.
        found: the search for its learning rates; ``None`` for a suite that is not tuned.

    Raises:
        InputError: other final runs than these were settled before, or the folder cannot be
            written to.
    """
    known = read_manifest(out)
    if found is not None and found.choices is None and known is not None and known["runs"]:
        # Settled runs stay until the search has chosen again. Only the diverged trials change.
        failed = _tuning_row(suite, found, _diverged_trials(out))["failed"]
        _write_whole(out, {**known, "tuning": {**known["tuning"], "failed": failed}})
        return
    check_settled(out, suite, found)
    rows = [] if found is not None and found.choices is None else suite.rows()
    tuning = None if found is None else _tuning_row(suite, found, _diverged_trials(out))
    _write_whole(out, {"contrast": _declared_contrast(suite), "runs": rows, "tuning": tuning})


def check_settled(out: Path, suite: Suite, found: RateSearch | None) -> None:
    """Refuse other final runs than a folder's settled ones, once they are known.

    Arguments are those of :func:`write_manifest`.

    Raises:
        InputError: other final runs than these were settled before.
    """
    known = read_manifest(out)
    if known is None or (found is not None and found.choices is None):
        return
    if found is not None:
        _check_choices(out, known["runs"], suite.rows())
    _check_grows(out, known["runs"], suite.rows())


@contextmanager
def written_manifest(out: Path, suite: Suite, found: RateSearch | None) -> Iterator[None]:
    """Write which run is which, and take it back if the runs cannot be had and none is there.

    A suite that names a model that is not there thus leaves nothing that would refuse the corrected
    one. Arguments and errors are those of :func:`write_manifest`.
    """
    before, missing = read_manifest(out), missing_parents(out / SUITE)
    write_manifest(out, suite, found)
    try:
        yield
    except (InputError, OSError):
        if before is None and not any((out / run_id(run.config)).exists() for run in suite.runs):
            with suppress(OSError):  # else nobody would hear why the runs cannot be had
                (out / SUITE).unlink(missing_ok=True)
            remove_empty(missing)
        raise


def _write_whole(out: Path, manifest: Manifest) -> None:
    missing = missing_parents(out / SUITE)
    try:
        with writing_in(out, mend=MEND):
            make_folder(out)
            with whole_file(out / SUITE) as partial:
                write_json(partial, manifest)
    except InputError:
        remove_empty(missing)
        raise


def _check_choices(
    out: Path, known: Sequence[Mapping[str, object]], rows: Sequence[Mapping[str, object]]
) -> None:
    """Refuse final runs at other learning rates than those that were settled."""

    def place(row: Mapping[str, object]) -> str:
        return json.dumps({**row, "run_id": ""}, sort_keys=True)

    now = {place(row): row["run_id"] for row in rows}
    lost = [row for row in known if now.get(place(row), row["run_id"]) != row["run_id"]]
    if lost:
        raise InputError(
            f"the suite in {str(out)!r} has the final run {lost[0]}, which now has other settings, "
            "or another learning rate, since the search chooses otherwise where the suite has "
            "grown: allowed is to grow without a change to what is there, choose another --out"
        )


def _declared_contrast(suite: Suite) -> dict[str, str] | None:
    return None if suite.contrast is None else suite.contrast.model_dump(exclude_none=True)


def _diverged_trials(out: Path) -> dict[str, Outcome]:
    """The trials in ``suite.json`` that diverged, by run id.

    Older versions kept every failure there. Those that did not diverge are tried again.
    """
    tuning = (read_manifest(out) or {}).get("tuning")
    rows = [] if tuning is None else tuning.get("failed", [])
    return {
        row["run_id"]: Outcome(out / row["run_id"], None, failure=failure, inputs=recorded_in(row))
        for row in rows
        if (failure := read_failure(row)).is_settled
    }


def _tuning_row(suite: Suite, found: RateSearch, known: Mapping[str, Outcome]) -> dict[str, object]:
    """The search as ``suite.json`` has it; ``known`` are trials that diverged in earlier calls."""
    assert suite.tune is not None
    failed = {
        run_id(trial.run.config): outcome
        for trial, outcome in zip(found.trials, found.outcomes, strict=False)
        if outcome.failure is not None and outcome.failure.is_settled
    }
    if found.choices is None:
        failed = {**known, **failed}
    return {
        "split": SEARCH_SPLIT,
        "seeds": list(suite.tune.seeds),
        "factors": list(found.factors),
        "declared": _declared_search(suite.tune),
        "runs": [trial.row() for trial in found.trials],
        "failed": [_failed_row(name, failed[name]) for name in sorted(failed)],
        "chosen": [choice.row() for choice in found.choices or ()],
    }


def _failed_row(name: str, outcome: Outcome) -> dict[str, object]:
    assert outcome.failure is not None
    return {"run_id": name, **outcome.failure.row(), "inputs": dict(outcome.inputs)}


def _declared_search(tune: TuneSettings) -> dict[str, object]:
    """A search's settings, in whatever order they were written."""
    return {
        **tune.model_dump(mode="json"),
        "factors": sorted(tune.factors),
        "seeds": sorted(tune.seeds),
    }


def _check_tuning(out: Path, known: Manifest | None, suite: Suite) -> None:
    """Refuse another search than the one that settled a folder's final runs."""
    declared = None if suite.tune is None else _declared_search(suite.tune)
    before = None if known is None else known.get("declared")
    if declared != before:
        raise InputError(
            f"tune is {declared}, but the final runs in {str(out)!r} were settled with {before}: "
            "allowed is the same search, restore it or choose another --out"
        )
    if known is not None:
        _check_grows(out, known["runs"], [t.row() for t in trials(suite, known.get("factors", []))])


def _check_grows(
    out: Path, known: Sequence[Mapping[str, object]], rows: Sequence[Mapping[str, object]]
) -> None:
    kept = {json.dumps(row, sort_keys=True) for row in rows}
    lost = [row for row in known if json.dumps(row, sort_keys=True) not in kept]
    if lost:
        raise InputError(
            f"{str(out)!r} holds a suite with the run {lost[0]}, which this one has not: "
            "allowed is the same suite or a larger one, choose another --out"
        )
