"""The comparison item by item: over seeds and items at once, and what flips for each seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemabank import stats
from schemabank.errors import InputError
from schemabank.itemscores import ItemScores, load_item_scores
from schemabank.report.runs import ReportedRun, RunSet
from schemabank.scoring import METRICS

ROUNDING = 1e-5  # of means of scores in float32

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Flips:
    """Items that one arm alone has right, of one seed at one setting; exact p of McNemar."""

    seed: int
    epochs: str
    only_treatment: int
    only_control: int
    p: float


@dataclass(frozen=True)
class ItemComparison:
    """Treatment against control, from the scores of single items.

    Attributes:
        epochs: the setting; ``None`` for each seed's mean over all.
        num_items: in the group.
        num_seeds: that both arms share.
        crossed: the difference, counting the variation of seeds and of items.
        verdict: on that, so that it speaks of other seeds and other items.
        mcnemar: for every seed and setting; empty for scores that are not right or wrong.
    """

    epochs: str | None
    num_items: int
    num_seeds: int
    crossed: stats.CrossedDifference
    verdict: stats.Verdict
    mcnemar: list[Flips]


def compare_items(
    runs: RunSet,
    group: str,
    arms: tuple[str, str],
    epochs: Sequence[str],
    *,
    primary: bool,
) -> ItemComparison | None:
    """Compare two arms item by item.

    Args:
        runs: all of them.
        group: of items.
        arms: treatment and control; a control that trains nothing is repeated for every seed.
        epochs: settings whose mean is compared.
        primary: whether there is but the one setting that was asked for.

    Returns:
        ``None`` where the arms share no seed that has all settings.

    Raises:
        InputError: scores cannot be read, or two runs of a pair have other items.
    """
    treatment, control = arms
    at = {(arm, setting): {r.seed: r for r in own} for (arm, setting), own in runs.at().items()}
    of_base = {run.setting: run for run in runs.runs if run.arm == control and not run.trained}

    def partner(setting: str, seed: int) -> ReportedRun | None:
        if of_base:
            return of_base.get(setting) or of_base.get("")
        return at.get((control, setting), {}).get(seed)

    first = at.get((treatment, epochs[0]), {})
    seeds = [
        seed
        for seed in first
        if all(seed in at.get((treatment, e), {}) and partner(e, seed) for e in epochs)
    ]
    if not seeds:
        return None
    pairs = {
        (setting, seed): (at[treatment, setting][seed], partner(setting, seed))
        for setting in epochs
        for seed in seeds
    }
    reader = _Reader(runs.score, group)
    sums: list[Matrix] = [np.zeros(()), np.zeros(())]
    flips: list[Flips] = []
    binary = METRICS[runs.runs[0].result["metric"]].binary
    for setting in epochs:
        a, b = reader.pair([pairs[setting, seed] for seed in seeds])
        sums = [sums[0] + a / len(epochs), sums[1] + b / len(epochs)]
        if binary and set(np.unique(a)) | set(np.unique(b)) <= {0.0, 1.0}:
            flips += _flips(a, b, seeds, setting)
    crossed = stats.crossed_difference(sums[0], sums[1], clusters=reader.clusters())
    return ItemComparison(
        epochs=epochs[0] if primary else None,
        num_items=sums[0].shape[1],
        num_seeds=len(seeds),
        crossed=crossed,
        verdict=stats.verdict(crossed),
        mcnemar=flips,
    )


class _Reader:
    """Reads runs' scores of one group, and sees to it that all have the same items."""

    def __init__(self, score: str, group: str) -> None:
        self.score, self.group = score, group
        self._first: tuple[ReportedRun, ItemScores] | None = None

    def pair(
        self, pairs: Sequence[tuple[ReportedRun, ReportedRun | None]]
    ) -> tuple[Matrix, Matrix]:
        """Return both arms' scores (seed, item)."""
        known: dict[str, npt.NDArray[np.float32]] = {}

        def scores(run: ReportedRun | None) -> npt.NDArray[np.float32]:
            assert run is not None
            if run.run_id not in known:
                known[run.run_id] = self._scores(run)
            return known[run.run_id]

        first = np.stack([scores(run) for run, _ in pairs])
        second = np.stack([scores(run) for _, run in pairs])
        return first.astype(np.float64), second.astype(np.float64)

    def clusters(self) -> list[int] | None:
        """Return each item's cluster; ``None`` where each was drawn alone."""
        assert self._first is not None
        _, clusters = self._first[1].within(self.group)
        return None if len(set(clusters.tolist())) == len(clusters) else clusters.tolist()

    def _scores(self, run: ReportedRun) -> npt.NDArray[np.float32]:
        found = load_item_scores(run.folder, self.score)
        if self._first is None:
            self._first = run, found
        other, own = self._first
        if found.digest != own.digest:
            raise InputError(
                f"{run.run_id} and {other.run_id} were scored on other items, allowed are runs "
                "with the same items: evaluate them on one split and limit, or report them apart"
            )
        scores = found.within(self.group)[0]
        said, mean = run.result["groups"][self.group][self.score], float(scores.mean())
        if abs(said - mean) > ROUNDING:
            raise InputError(
                f"{run.run_id} has the {self.score} {said:g} in its result, but {mean:g} over its "
                "items: restore the run, or move its folder away"
            )
        return scores


def _flips(a: Matrix, b: Matrix, seeds: Sequence[int], setting: str) -> list[Flips]:
    return [
        Flips(seed, setting, found.only_a, found.only_b, found.p)
        for seed, found in zip(seeds, stats.mcnemar(a, b), strict=True)
    ]
