"""Warnings about what was evaluated: unlike conditions, few clusters, tasks left out."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

from schemabank.report.comparing.comparison import Comparison
from schemabank.report.comparing.material import Material
from schemabank.report.reading.itemresults import ItemResults
from schemabank.report.reading.table import ScoreTable
from schemabank.report.warnings.finding import Finding, first_named
from schemabank.runs.inputs import lacks_clusters

FEWEST_CLUSTERS = 10  # of equal size, that their spread is known by


def find_evaluation_warnings(results: ItemResults, comparison: Comparison) -> Iterator[Finding]:
    """Return all findings about two arms' evaluations."""
    arms = comparison.treatment, comparison.control
    yield from _unlike(results, arms)
    compared = {contrast.setting for contrast in comparison.contrasts}
    tasks = [task for task in results.tasks if task in compared]
    yield from _few_clusters({task: results.clusters(task) for task in tasks})
    left = [task for task in results.tasks if task not in compared]
    if left:
        yield Finding(
            "excluded-tasks",
            {"tasks": left},
            f"Tasks are left out, since {arms[0]} and {arms[1]} do not share them: "
            f"{first_named(left)}.",
        )


def find_cluster_warnings(material: Material) -> Iterator[Finding]:
    """Runs' items that lie in few clusters, or whose clusters were not recorded.

    Clusters play no part in what counts seeds alone.
    """
    yield from _few_clusters({material.group: material.by_item.clusters(material.group)})
    if not material.comparison.counts_items:
        return
    own = [run for run in material.runs.runs if run.arm in material.arms]
    lacking = [run.run_id for run in own if lacks_clusters(run.folder, run.result["task"])]
    if lacking:
        task = own[0].result["task"]
        yield Finding(
            "clusters-not-recorded",
            {"task": task, "runs": lacking},
            f"Items of {task} are drawn together, and an older version did not record which "
            f"({first_named(lacking)}): they count as independent, so intervals are too narrow.",
        )


def without_items(table: ScoreTable) -> Iterator[Finding]:
    """Results of a tool that keeps no scores of single items."""
    if table.tool:
        yield Finding(
            "no-items",
            {"tool": table.tool},
            f"{table.tool} keeps no scores of single items, so seeds alone are counted: what is "
            "said holds for other seeds on these very items, and nothing tells how other items "
            "would come out, or whether all runs were scored on the same ones.",
        )


def _few_clusters(clusters: Mapping[str, Sequence[Hashable] | None]) -> Iterator[Finding]:
    """Tasks or groups with few clusters, or most of whose items lie in a few of them.

    Their error takes clusters to differ about normally: what fewer than ten cannot show. What
    counts is the effective number of clusters, weighted by their sizes (Kish 1965, Survey
    Sampling). How often tests then err is in ``results/clusters.json``.
    """
    found: dict[str, tuple[int, float]] = {}
    for task, own in clusters.items():
        sizes = Counter(own or ()).values()
        if sizes:
            equal = sum(sizes) ** 2 / sum(size**2 for size in sizes)
            if equal < FEWEST_CLUSTERS:
                found[task] = len(sizes), equal
    if found:
        told = [f"{task}: {num}, worth {equal:.3g}" for task, (num, equal) in found.items()]
        yield Finding(
            "few-clusters",
            {"clusters": {task: {"num": n, "worth": e} for task, (n, e) in found.items()}},
            f"Items lie in clusters that are worth fewer than {FEWEST_CLUSTERS} of equal size "
            f"({first_named(told)}): intervals are wide, and hold only if clusters differ about "
            "normally.",
        )


def _shown(value: str) -> str:
    """A value as UTF-8 can hold it; half a character becomes a mark."""
    return value.encode("utf-8", "replace").decode("utf-8")


def _unlike(results: ItemResults, arms: tuple[str, str]) -> Iterator[Finding]:
    """Conditions of a task that differ between the runs of both arms."""
    found: dict[str, dict[str, list[str]]] = {}
    for task in results.tasks:
        own = [run for run in results.runs if run.task == task and run.arm in arms]
        for name in dict.fromkeys(name for run in own for name in run.conditions):
            values = {_shown(run.conditions.get(name, "none")) for run in own}
            if len(values) > 1:
                found.setdefault(task, {})[name] = sorted(values)
    if found:
        shown = [
            f"{task}: {name} is {' or '.join(f'{value:.60}' for value in values)}"
            for task, own in found.items()
            for name, values in own.items()
        ]
        yield Finding(
            "other-evaluation",
            {"conditions": found},
            f"The runs were not evaluated alike ({first_named(shown)}): a difference may come from "
            "that.",
        )
