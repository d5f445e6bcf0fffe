"""A report on results that other tools made: their items, compared as a suite's are."""

from schemabank.common.errors import InputError
from schemabank.report.comparing.comparison import compare
from schemabank.report.comparing.itemruns import ItemRuns
from schemabank.report.comparing.judging import judged_by
from schemabank.report.comparing.margins import Margin
from schemabank.report.contents import Report, TableFile, Topics
from schemabank.report.reading.itemresults import ItemResults, as_score_table
from schemabank.report.reading.table import ScoreTable, choose_arms
from schemabank.report.reading.tabulate import with_control
from schemabank.report.sections.verdict import Scoring
from schemabank.report.warnings.evaluations import find_evaluation_warnings
from schemabank.report.warnings.finding import by_weight
from schemabank.report.warnings.scores import find_warnings


def examine_items(
    results: ItemResults,
    arms: tuple[str | None, str | None],
    primary: str | None,
    *,
    margin: Margin | None,
    test_size: int | None,
) -> Report:
    """Return what a report says of other tools' results.

    Args:
        results: their runs.
        arms: treatment and control; ``None`` where the runs make them clear.
        primary: task that was declared primary; ``None`` for the mean over all.
        margin: that the primary contrast is judged by.
        test_size: items of the whole test split, where known.

    Raises:
        InputError: they cannot be compared as asked.
    """
    table = as_score_table(results)
    treatment, control = _chosen(table, *arms)
    table = with_control(table, treatment, control)
    by_item = ItemRuns(results)
    comparison = compare(table, treatment, control, primary, by_item.difference)
    comparison = judged_by(margin, comparison)
    tasks = [contrast.setting or "" for contrast in comparison.contrasts]
    items = by_item.comparison((treatment, control), tasks if primary is None else [primary])
    warnings = [
        *find_warnings(table, comparison, test_size),
        *find_evaluation_warnings(results, comparison),
    ]
    return Report(
        table=TableFile(results.name, results.digest, len(results.runs)),
        comparison=comparison,
        warnings=by_weight(warnings, (treatment, control)),
        scored=Scoring(_metrics(results, tasks)),
        topics=Topics(items=items),
    )


def _chosen(table: ScoreTable, treatment: str | None, control: str | None) -> tuple[str, str]:
    """Treatment and control; an arm with a single run beside others' seeds may be the control."""
    references = list(dict.fromkeys(row.arm for row in table.references))
    if treatment in references:
        raise InputError(
            f"--treatment {treatment!r} has one run without a seed, beside arms with seeds: "
            "allowed are arms with seeds, name it as the control"
        )
    if treatment is None and len(table.arms) == 1:
        (treatment,) = table.arms
    if control is None and treatment is not None and table.arms == [treatment]:
        control = references[0] if len(references) == 1 else None
    if treatment in table.arms and control in references:
        assert treatment is not None
        assert control is not None
        return treatment, control
    return choose_arms(table, treatment, control)


def _metrics(results: ItemResults, tasks: list[str]) -> str:
    """The metric of all tasks, or each task's own."""
    own = {run.task: run.metric for run in results.runs if run.task in tasks}
    if len(set(own.values())) == 1:
        return next(iter(own.values()))
    return "; ".join(f"{metric} of {task}" for task, metric in own.items())
