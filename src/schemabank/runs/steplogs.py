"""``metrics.jsonl`` of the runs of a cohort: one line a step. With a run's last line it is kept."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from schemabank.common.errors import InputError, first_line
from schemabank.common.failure import failure_to_write
from schemabank.common.waiting import Note
from schemabank.common.writing import how_to_mend
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.runs.folder import METRICS
from schemabank.runs.kept import MadeWith
from schemabank.runs.members import Member, tokens_before
from schemabank.runs.trained import Records, TrainedState, write_trained


class StepLogs:
    """``metrics.jsonl`` of every run: one line a step. A run whose log cannot be written fails.

    Args:
        paths: by the run's id; a file begins with the run's first step.
        cohort: whose runs they are; their slots stay the same when it is halted and resumed.
        begun: how many tokens the runs have seen whose files have lines already.

    Attributes:
        num_tokens: how many tokens each run has seen.
        lost: names of the runs whose log could not be written.
    """

    def __init__(
        self, paths: Mapping[str, Path], cohort: Cohort, *, begun: Mapping[str, int] | None = None
    ) -> None:
        self._paths, self._files = paths, dict[str, TextIO]()
        self._begun, self.num_tokens = set(begun or ()), Counter(begun)
        self.lost: set[str] = set()
        self._slots = {slot.run.name: slot for slot in cohort.slots}

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close all files; what still waits to be written may fail now."""
        for name in [*self._files]:
            self._close(name)

    def write(self, step: RunStep) -> None:
        """Write a step's line, but for a run that has lost its log."""
        if step.run in self.lost:
            return
        try:
            if step.run not in self._files:
                mode: Literal["a", "w"] = "a" if step.run in self._begun else "w"
                self._files[step.run] = self._paths[step.run].open(mode, encoding="utf-8")
                self._begun.add(step.run)
            self._files[step.run].write(_json_line(step))
            self.num_tokens[step.run] += step.num_tokens
            if step.is_last:
                self._files.pop(step.run).close()  # one of hundreds, each with its buffer
        except OSError as error:
            self._lose(step.run, error)

    def flush(self) -> None:
        """Let the files have all lines so far."""
        for name, file in self._files.items():
            try:
                file.flush()
            except OSError as error:
                self._lose(name, error)

    def _close(self, name: str) -> None:
        """Close a run's file, if it has one."""
        try:
            if name in self._files:
                self._files.pop(name).close()
        except OSError as error:
            self._lose(name, error)

    def _lose(self, name: str, error: OSError | InputError) -> None:
        self.lost.add(name)
        slot = self._slots[name]
        slot.failure = slot.failure or failure_to_write(error, self._paths[name].parent)


class KeepingLogs(StepLogs):
    """The same; a run whose last line is written is kept, so that it need not be trained again.

    Args:
        members: the runs with their folders.
        made: what they all are trained with.
        began: when their training began, as ``time.monotonic`` tells it.
        cohort: whose runs they are.
        records: tells what else is known of a run, by its name; by default nothing.
        note: told of a run that cannot be written, which then goes on and is saved no more; by
            default it fails.
    """

    def __init__(
        self,
        members: Sequence[Member],
        made: MadeWith,
        began: float,
        cohort: Cohort,
        *,
        records: Records | None = None,
        note: Note | None = None,
    ) -> None:
        super().__init__(
            {each.name: each.claim.path / METRICS for each in members},
            cohort,
            begun=tokens_before(members),
        )
        self._members = {each.name: each for each in members if each.trained is None}
        self._made, self._began, self._finished = made, began, cohort.finished
        # Otherwise no run waits for a slot of its own, and to read its weights again gains nothing.
        # A program that holds its runs goes on without its disk, and so needs them in memory.
        self._lets_go = note is None and len(cohort.slots) > cohort.stack.num_slots
        self._records, self._note = records or (lambda _: {}), note
        self._taken = {e.name: e.begun.standing.state.step for e in members if e.begun is not None}

    def __exit__(self, *error: object) -> None:
        """Close all files, and keep the runs that ended last."""
        super().__exit__(*error)
        self._keep_ended()

    def write(self, step: RunStep) -> None:
        """Write a step's line, after keeping the runs that have left their slots meanwhile."""
        self._keep_ended()
        super().write(step)
        self._taken[step.run] = step.step + 1

    def flush(self) -> None:
        """Keep the runs that have left their slots meanwhile, too."""
        self._keep_ended()
        super().flush()

    def _keep_ended(self) -> None:
        """Write what runs have come to; one that failed begins again, and fails again."""
        for name in [name for name in self._members if name in self._finished]:
            slot, weights = self._slots[name], self._finished[name]
            if slot.failure is None and self._taken.get(name) != slot.step:
                continue  # on a GPU, reports of its last steps are still to come
            self._close(name)  # one that was stopped has no last line that would close it
            if name not in self._members:  # it could not be written
                continue
            member, training_s = self._members.pop(name), time.monotonic() - self._began
            records = self._records(name)
            trained = TrainedState.of(slot, weights, training_s=training_s, records=records)
            if slot.failure is None and trained.is_finite:
                made = {**self._made, **member.taught}
                self._keep(member, partial(self._put_away, name, trained, made))

    def _put_away(self, name: str, trained: TrainedState, made: MadeWith, folder: Path) -> None:
        """Write what a run has come to, and let go of its weights once they were read again."""
        stored = write_trained(folder, trained, made)
        if self._lets_go and stored.holds(trained.weights):
            self._finished.put_away(name, stored.read)

    def _keep(self, member: Member, write: Callable[[Path], None]) -> None:
        if self._note is None:
            member.write(write)
            return
        try:
            member.claim.check_there()
            write(member.claim.path)
        except (OSError, InputError) as error:
            self._lose(member.name, error)

    def _lose(self, name: str, error: OSError | InputError) -> None:
        if self._note is None:
            super()._lose(name, error)
            return
        if name in self.lost:
            return
        self.lost.add(name)
        self._members.pop(name, None)
        self._note(
            f"{name} is saved no more ({first_line(error)}): it goes on, and if the call is "
            f"interrupted, it begins again from its last checkpoint{how_to_mend(error)}"
        )


def step_of_row(row: Mapping[str, Any]) -> RunStep:
    """Return the step that a line of ``metrics.jsonl`` is of; a number that is null is NaN."""
    found: dict[str, Any] = {n: math.nan if v is None else v for n, v in row.items()}
    own = {each.name for each in fields(RunStep)}
    logged = {name: value for name, value in found.items() if name not in own}
    examples = tuple(found.get("examples", ()))  # of a skipped step alone
    numbers = {name: found[name] for name in own - {"logged", "examples"}}
    return RunStep(**numbers, logged=logged, examples=examples)


def _json_line(step: RunStep) -> str:
    """One line of ``metrics.jsonl``; JSON has no NaN or infinity, so they become null."""
    row = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in _flat(step).items()
    }
    return json.dumps(row, allow_nan=False) + "\n"


def _flat(step: RunStep) -> dict[str, object]:
    row: dict[str, object] = asdict(step)
    del row["logged"]
    if not step.examples:
        del row["examples"]
    return row | {name: value for name, value in step.logged.items() if name not in row}
