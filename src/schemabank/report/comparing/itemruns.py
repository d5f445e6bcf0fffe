"""Other tools' runs compared item by item: over seeds and items, or over items alone."""

from collections.abc import Sequence

import numpy as np

from schemabank import stats
from schemabank.report.comparing.items import Flips, ItemComparison
from schemabank.report.reading.itemresults import ItemResults


class ItemRuns:
    """The scores of single items of all runs.

    Args:
        results: runs with the same items for each task.
    """

    def __init__(self, results: ItemResults) -> None:
        self._results = results

    def difference(
        self, treatment: str, control: str, tasks: Sequence[str]
    ) -> stats.CrossedDifference | stats.OverItems | None:
        """Compare two arms over the mean of tasks.

        Returns:
            Over seeds and items where the arms share two seeds; over items alone where each arm
            has a single run; else ``None``.
        """
        seeds = self.shared_seeds(treatment, control, tasks)
        strata = [
            stats.Stratum(
                self._results.scores(treatment, task, seeds),
                self._results.scores(control, task, seeds),
                self._results.clusters(task),
            )
            for task in tasks
        ]
        if len(seeds) >= 2:
            if len(strata) == 1:
                (one,) = strata
                return stats.crossed_difference(one.a, one.b, clusters=one.clusters)
            return stats.stratified_difference(strata)
        is_single = all(self._num_runs(arm, tasks[0]) == 1 for arm in (treatment, control))
        return stats.difference_over_items(strata) if seeds and is_single else None

    def comparison(self, arms: tuple[str, str], tasks: Sequence[str]) -> ItemComparison | None:
        """Compare two arms item by item; ``None`` where `difference` is."""
        found = self.difference(*arms, tasks)
        if found is None:
            return None
        seeds = self.shared_seeds(*arms, tasks)
        flips: list[Flips] = []
        for task in tasks:
            a, b = (self._results.scores(arm, task, seeds) for arm in arms)
            if set(np.unique(a)) | set(np.unique(b)) <= {0.0, 1.0}:
                pairs = zip(seeds, stats.mcnemar(a, b), strict=True)
                flips += [Flips(seed, task, own.only_a, own.only_b, own.p) for seed, own in pairs]
        num_items = sum(self._results.scores(arms[0], task, seeds[:1]).size for task in tasks)
        one = tasks[0] if len(tasks) == 1 else None
        return ItemComparison(one, num_items, len(seeds), found, flips)

    def shared_seeds(self, treatment: str, control: str, tasks: Sequence[str]) -> list[str]:
        """Return the treatment's seeds that both arms have for all tasks."""
        own = [run.seed for run in self._results.runs if run.arm == treatment]
        return [
            seed
            for seed in dict.fromkeys(own)
            if seed is not None
            and all(
                self._results.run(arm, task, seed) for arm in (treatment, control) for task in tasks
            )
        ]

    def _num_runs(self, arm: str, task: str) -> int:
        return sum((run.arm, run.task) == (arm, task) for run in self._results.runs)
