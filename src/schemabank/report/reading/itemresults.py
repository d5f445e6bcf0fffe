"""What other tools say of runs: one score for each item of one or more tasks.

All runs of a task must have answered the same items. Where an item's content is known, it must be
the same too, so that a changed data set cannot pass for a difference of two arms.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError
from schemabank.common.files import is_number
from schemabank.report.reading.table import ScoreRow, ScoreTable

ONLY_RUN = "only run"  # in the place of a seed, where each arm has a single run
FLOAT_DIGITS = 17
TASKS = "tasks"
OTHERWISE = "write shares of which more is better into a table of items (arm,seed,item,score)"


@dataclass(frozen=True)
class ScoredItem:
    """An item of a run.

    Attributes:
        score: from 0 to 1; the mean over its answers where there are several.
        content: tells whether it is the same item in another run; empty where that is not known.
        cluster: what it was drawn with; ``None`` where it was drawn by itself.
    """

    score: float
    content: str = ""
    cluster: str | None = None


@dataclass(frozen=True)
class TaskRun:
    """A run's items of one task.

    Attributes:
        arm: its arm.
        seed: as text; ``None`` where nothing names one.
        task: name of the task.
        metric: name of the score.
        source: file that it was read from.
        items: by id.
        conditions: of the evaluation, which should be alike in all runs.
    """

    arm: str
    seed: str | None
    task: str
    metric: str
    source: str
    items: Mapping[str, ScoredItem]
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Of all items."""
        return float(np.mean([item.score for item in self.items.values()]))


@dataclass(frozen=True)
class ItemResults:
    """All runs that are compared.

    Attributes:
        name: of the folder or file.
        tool: that made them.
        runs: each with the same items of its task.
    """

    name: str
    tool: str
    runs: tuple[TaskRun, ...]

    @property
    def tasks(self) -> list[str]:
        """Names of tasks, in the order of the runs."""
        return list(dict.fromkeys(run.task for run in self.runs))

    @property
    def digest(self) -> str:
        """Of all scores and the places of their runs."""
        found = hashlib.sha256()
        for run in self.runs:
            scores = {name: item.score for name, item in run.items.items()}
            said = [run.arm, run.seed, run.task, run.metric, scores]
            found.update(json.dumps(said, sort_keys=True).encode())
        return found.hexdigest()

    def run(self, arm: str, task: str, seed: str | None) -> TaskRun | None:
        """Return an arm's run of a task; the only one of an arm without seeds fits every seed."""
        own = [run for run in self.runs if (run.arm, run.task) == (arm, task)]
        return next((run for run in own if run.seed in (None, seed)), None)

    def scores(self, arm: str, task: str, seeds: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return an arm's scores of a task: (seed, item)."""
        names = list(next(run for run in self.runs if run.task == task).items)
        found = []
        for seed in seeds:
            run = self.run(arm, task, seed)
            assert run is not None
            found.append([run.items[name].score for name in names])
        return np.array(found, dtype=np.float64)

    def clusters(self, task: str) -> list[str] | None:
        """Return each item's cluster; ``None`` where all were drawn by themselves."""
        items = next(run for run in self.runs if run.task == task).items
        found = [item.cluster for item in items.values()]
        if all(cluster is None for cluster in found):
            return None
        return [name if c is None else f"={c}" for name, c in zip(items, found, strict=True)]


def item_results(name: str, tool: str, runs: Iterable[TaskRun]) -> ItemResults:
    """Return runs that can be compared.

    Raises:
        InputError: two runs have the same place, or a task's runs have other items or metrics.
    """
    found = tuple(_with_seeds(list(runs)))
    seen: dict[tuple[str, str | None, str], TaskRun] = {}
    for run in found:
        first = seen.setdefault((run.arm, run.seed, run.task), run)
        if first is not run:
            seed = "no seed" if run.seed in {None, ONLY_RUN} else f"seed {run.seed}"
            raise InputError(
                f"{first.source} and {run.source} are both of arm {run.arm!r:.80}, {seed} and task "
                f"{run.task!r:.80}: allowed is one run a place, name seeds in the folders "
                "(NAME-seed1), name the arms by --arm NAME=PATH or --arm NAME:SEED=PATH, or move "
                "one of the files away"
            )
    firsts: dict[str, TaskRun] = {}
    with_seed = {run.arm: run for run in found if run.seed is not None}
    for run in found:
        if run.seed is None and run.arm in with_seed:
            raise InputError(
                f"{run.source} names no seed, but {with_seed[run.arm].source} of the same arm "
                f"{run.arm!r:.80} does: allowed are seeds for all runs of an arm, name them in the "
                "folders (NAME-seed1) or by --arm NAME:SEED=PATH, or give the run an arm of its own"
            )
        _check_names(run)
        _check_alike(firsts.setdefault(run.task, run), run)
    return ItemResults(name, tool, found)


def as_score(value: object, where: str) -> float:
    """Return a number of JSON that is a share.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, bool):
        return float(value)
    if not is_number(value, at_most=1) or not isinstance(value, int | float) or value < 0:
        raise InputError(
            f"{where} has the score {value!r:.60}, allowed are numbers from 0 to 1, of which more "
            f"is better: name another metric with --metric, or {OTHERWISE}"
        )
    return float(value)


def as_score_table(results: ItemResults) -> ScoreTable:
    """Return the runs' means as a table, whose settings are tasks."""
    rows = tuple(_row(run, line) for line, run in enumerate(results.runs, start=1))
    return ScoreTable(results.name, results.digest, rows, TASKS, of_tasks=True)


def _row(run: TaskRun, line: int) -> ScoreRow:
    scores = [item.score for item in run.items.values()]
    is_binary = set(scores) <= {0.0, 1.0}
    exact = Fraction(round(sum(scores)), len(scores)) if is_binary else Fraction(run.mean)
    num_items = len(scores) if is_binary else None
    return ScoreRow(run.arm, run.task, run.seed, exact, FLOAT_DIGITS, num_items, line)


def _with_seeds(runs: Sequence[TaskRun]) -> Iterator[TaskRun]:
    """Where no run names a seed, each is the only run of its arm; else it is a reference."""
    if any(run.seed is not None for run in runs):
        yield from runs
        return
    for run in runs:
        yield TaskRun(**{**vars(run), "seed": ONLY_RUN})


def _check_names(run: TaskRun) -> None:
    """Refuse names that no page can show in one line."""
    for kind in ("arm", "task", "metric"):
        name = getattr(run, kind)
        if not name.strip() or not name.isprintable():
            raise InputError(
                f"{run.source} is of the {kind} {name!r:.100}: allowed are names that can be "
                "printed, rename it, or name the arm by --arm NAME=PATH"
            )


def _check_alike(first: TaskRun, run: TaskRun) -> None:
    """Refuse runs of a task that cannot be compared item by item."""
    both = f"{first.source} and {run.source}, both of task {run.task!r:.80},"
    if first.metric != run.metric:
        raise InputError(
            f"{both} have the metrics {first.metric!r:.80} and {run.metric!r:.80}: allowed is one, "
            "name it with --metric"
        )
    if not run.items:
        raise InputError(f"{run.source} has no item of task {run.task!r:.80}: restore it")
    odd = sorted(first.items.keys() ^ run.items.keys())
    if odd:
        raise InputError(
            f"{both} have other items ({len(odd)} of them in one alone, such as {odd[0]!r:.60}): "
            "allowed are runs on the same items, evaluate them with one limit and one split"
        )
    for name, item in run.items.items():
        other = first.items[name]
        if other.content and item.content and other.content != item.content:
            raise InputError(
                f"{both} have other contents under the id {name!r:.60}: allowed are runs on the "
                "same data, evaluate them on one version of it"
            )
        if other.cluster != item.cluster:
            raise InputError(
                f"{both} have the item {name!r:.60} in the clusters {other.cluster!r:.60} and "
                f"{item.cluster!r:.60}: allowed is one, mend the field that names it"
            )
