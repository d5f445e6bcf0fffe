"""The comparison item by item: over seeds and items at once, and what flips for each seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import ReportedRun, RunSet
from schemabank.runs.inputs import lacks_clusters
from schemabank.runs.itemscores import ItemScores, digest_without_clusters, load_item_scores
from schemabank.tasks.scoring.scores import METRICS

ROUNDING = 1e-5  # of means of scores in float32

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Flips:
    """Items that one arm alone has right, of one seed at one setting; exact p of McNemar."""

    seed: int | str
    setting: str = field(metadata=EPOCHS)
    only_treatment: int
    only_control: int
    p: float


@dataclass(frozen=True)
class ItemComparison:
    """Treatment against control, from the scores of single items.

    Attributes:
        setting: the setting; ``None`` for each seed's mean over all.
        num_items: in the group.
        num_seeds: that both arms share.
        crossed: the difference, counting the variation of seeds and of items; of single runs, of
            items alone.
        mcnemar: for every seed and setting; empty for scores that are not right or wrong.
    """

    setting: str | None = field(metadata=EPOCHS)
    num_items: int
    num_seeds: int
    crossed: stats.CrossedDifference | stats.OverItems
    mcnemar: list[Flips]


@dataclass(frozen=True)
class PairedScores:
    """Two arms' scores of the same seeds and items, each seed's mean over settings.

    Attributes:
        treatment: (seed, item) scores.
        control: (seed, item) scores; those of an arm that trains nothing, once for every seed.
        clusters: of the items; ``None`` where each was drawn alone.
    """

    treatment: Matrix
    control: Matrix
    clusters: list[int] | None


class ItemTable:
    """The runs' scores of single items, each run's read once.

    All runs have the same items: an error is raised where one has not.
    """

    def __init__(self, runs: RunSet) -> None:
        self._runs = runs
        self._at = {key: {run.seed: run for run in own} for key, own in runs.by_place().items()}
        self._fixed: dict[str, dict[str, ReportedRun]] = {}
        for run in runs.runs:
            if not run.trained:
                self._fixed.setdefault(run.arm, {})[run.setting] = run
        self._first: tuple[ReportedRun, ItemScores] | None = None
        self._scores: dict[str, npt.NDArray[np.float32]] = {}
        self._checked: set[tuple[str, str]] = set()

    def difference(
        self, group: str, treatment: str, control: str, settings: Sequence[str]
    ) -> stats.CrossedDifference | None:
        """Compare two arms over seeds and items, each seed's mean over settings.

        Args:
            group: of items.
            treatment: arm that is trained.
            control: arm; one that trains nothing is repeated for every seed.
            settings: of both.

        Returns:
            ``None`` where the arms share no seed that has all settings.

        Raises:
            InputError: scores cannot be read, or runs have other items.
        """
        found = self.paired_scores(group, treatment, control, settings)
        if found is None:
            return None
        return stats.crossed_difference(found.treatment, found.control, clusters=found.clusters)

    def paired_scores(
        self, group: str, treatment: str, control: str, settings: Sequence[str]
    ) -> PairedScores | None:
        """Return what `difference` compares."""
        seeds = self._shared_seeds(treatment, control, settings)
        if not seeds:
            return None
        first, second = (
            np.mean([self._matrix(group, arm, setting, seeds) for setting in settings], axis=0)
            for arm in (treatment, control)
        )
        return PairedScores(first, second, self.clusters(group))

    def comparison(
        self, group: str, arms: tuple[str, str], settings: Sequence[str], *, primary: bool
    ) -> ItemComparison | None:
        """Compare two arms item by item.

        Args:
            group: of items.
            arms: treatment and control.
            settings: whose mean is compared.
            primary: whether there is but the one setting that was asked for.

        Returns:
            ``None`` where the arms share no seed that has all settings.
        """
        crossed = self.difference(group, *arms, settings)
        if crossed is None:
            return None
        seeds = self._shared_seeds(*arms, settings)
        binary = METRICS[self._runs.runs[0].result["metric"]].binary
        flips: list[Flips] = []
        for setting in settings:
            a, b = (self._matrix(group, arm, setting, seeds) for arm in arms)
            if binary and set(np.unique(a)) | set(np.unique(b)) <= {0.0, 1.0}:
                flips += _flips(a, b, seeds, setting)
        return ItemComparison(
            setting=settings[0] if primary else None,
            num_items=len(self._first_items().within(group)[0]),
            num_seeds=len(seeds),
            crossed=crossed,
            mcnemar=flips,
        )

    def clusters(self, group: str) -> list[int] | None:
        """Each item's cluster; ``None`` where each was drawn alone, or no item was read."""
        if self._first is None:
            return None
        _, clusters = self._first_items().within(group)
        return None if len(set(clusters.tolist())) == len(clusters) else clusters.tolist()

    def _shared_seeds(self, treatment: str, control: str, settings: Sequence[str]) -> list[int]:
        """The treatment's seeds that both arms have at all settings."""
        return [
            seed
            for seed in self._at.get((treatment, settings[0]), {})
            if all(self._run_at(arm, e, seed) for arm in (treatment, control) for e in settings)
        ]

    def _run_at(self, arm: str, setting: str, seed: int) -> ReportedRun | None:
        """An arm's run; that of an arm which trains nothing stands for every seed."""
        if fixed := self._fixed.get(arm):
            return fixed.get(setting) or fixed.get("")
        return self._at.get((arm, setting), {}).get(seed)

    def _matrix(self, group: str, arm: str, setting: str, seeds: Sequence[int]) -> Matrix:
        """An arm's scores at a setting: (seed, item)."""
        runs = [self._run_at(arm, setting, seed) for seed in seeds]
        return np.stack([self._scores_of(run, group) for run in runs if run]).astype(np.float64)

    def _first_items(self) -> ItemScores:
        assert self._first is not None
        return self._first[1]

    def _scores_of(self, run: ReportedRun, group: str) -> npt.NDArray[np.float32]:
        """A run's scores in a group, checked against its result."""
        if run.run_id not in self._scores:
            self._scores[run.run_id] = self._load_scores(run)
        places = self._first_items()
        own = places.group == places.groups.index(group)
        scores: npt.NDArray[np.float32] = self._scores[run.run_id][own]
        if (run.run_id, group) not in self._checked:
            self._check_mean(run, group, float(scores.mean()))
            self._checked.add((run.run_id, group))
        return scores

    def _load_scores(self, run: ReportedRun) -> npt.NDArray[np.float32]:
        found = load_item_scores(run.folder, self._runs.score)
        if self._first is None:
            self._first = run, found
        other, own = self._first
        if found.digest != own.digest:
            raise InputError(_how_items_differ(run, other, self._runs.score))
        return found.scores

    def _check_mean(self, run: ReportedRun, group: str, mean: float) -> None:
        score = self._runs.score
        said = run.result["groups"][group][score]
        if abs(said - mean) > ROUNDING:
            raise InputError(
                f"{run.run_id} has the {score} {said:g} in its result, but {mean:g} over its "
                "items: restore the run, or move its folder away"
            )


def _how_items_differ(one: ReportedRun, other: ReportedRun, score: str) -> str:
    """Say in what the items of two runs differ: in themselves, or in their clusters alone."""
    both = f"{one.run_id} and {other.run_id} were scored on"
    bare, others = (digest_without_clusters(run.folder, score) for run in (one, other))
    if bare is None or bare != others:
        # The same items of a packed run, which has no predictions, cannot be told from others.
        unknown = "" if bare and others else ", or on the same in other clusters"
        return (
            f"{both} other items{unknown}, allowed are runs with the same items: evaluate them on "
            "one split and limit, or report them apart"
        )
    lacking = [run for run in (one, other) if lacks_clusters(run.folder, run.result["task"])]
    if len(lacking) == 1:
        return (
            f"{both} the same items, but {lacking[0].run_id} is of an older version, which did not "
            "record which of them were drawn together: allowed are runs that all record it, or "
            "none; move the folders of the older runs away and run them again, or report them apart"
        )
    return (
        f"{both} the same items, but these are drawn together in other clusters: allowed are runs "
        "whose items have the same clusters; report the others apart"
    )


def _flips(a: Matrix, b: Matrix, seeds: Sequence[int], setting: str) -> list[Flips]:
    return [
        Flips(seed, setting, found.only_a, found.only_b, found.p)
        for seed, found in zip(seeds, stats.mcnemar(a, b), strict=True)
    ]
