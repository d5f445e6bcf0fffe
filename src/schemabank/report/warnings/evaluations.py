"""Warnings about evaluations that other tools made: unlike conditions, and tasks left out."""

from collections.abc import Iterator

from schemabank.report.comparing.comparison import Comparison
from schemabank.report.reading.itemresults import ItemResults
from schemabank.report.warnings.finding import Finding, first_named


def find_evaluation_warnings(results: ItemResults, comparison: Comparison) -> Iterator[Finding]:
    """Return all findings about two arms' evaluations."""
    arms = comparison.treatment, comparison.control
    yield from _unlike(results, arms)
    compared = {contrast.setting for contrast in comparison.contrasts}
    left = [task for task in results.tasks if task not in compared]
    if left:
        yield Finding(
            "excluded-tasks",
            {"tasks": left},
            f"Tasks are left out, since {arms[0]} and {arms[1]} do not share them: "
            f"{first_named(left)}.",
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
