"""Runs as rows of a table of results, so that both are compared by the same code."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from schemabank.common.errors import InputError
from schemabank.report.reading.runs import ReportedRun, RunSet
from schemabank.report.reading.table import CONTROLS, ScoreRow, ScoreTable
from schemabank.tasks.scoring.scores import METRICS

FLOAT_DIGITS = 17
ROUNDING = 1e-9
LONGEST_ANSWER = 30  # characters
CONSTANT = "best constant answer"


def as_table(runs: RunSet, group: str) -> ScoreTable:
    """Return the scores of a group of items: trained runs with their seeds, others without.

    The best constant answer, found among the gold answers of the very items, is a reference.
    """
    rows = [*_run_rows(runs, group), *_constant_row(runs, group)]
    return ScoreTable(runs.name, runs.digest, tuple(rows), runs.setting_name)


def choose_contrast(runs: RunSet, treatment: str | None, control: str | None) -> tuple[str, str]:
    """Return treatment and control: as asked, as declared, or as the arms make it clear.

    Raises:
        InputError: they are not clear, or are no arms of these runs.
    """
    arms = [*runs.arms(trained=True), *runs.arms(trained=False)]
    declared = runs.contrast or (None, None)
    if (treatment or declared[0]) != (control or declared[1]):
        treatment, control = treatment or declared[0], control or declared[1]
    trained = runs.arms(trained=True)
    if treatment is None and control is None and len(trained) == 1 and len(arms) > 1:
        treatment, control = trained[0], runs.arms(trained=False)[0]
    if treatment is None and control is None and len(trained) == 2:
        known = [arm for arm in trained if arm.lower() in CONTROLS]
        if len(known) == 1:
            (control,) = known
            (treatment,) = set(trained) - {control}
    for name in (treatment, control):
        if name is not None and name not in arms:
            raise InputError(f"arm {name!r} has no runs, allowed are {', '.join(arms)}: name one")
    if treatment is None or control is None or treatment == control:
        raise InputError(
            f"the arms are {', '.join(arms)}, so treatment and control are not clear: name two "
            "with --treatment and --control, or declare a contrast in the suite"
        )
    if treatment not in trained:
        raise InputError(
            f"the treatment {treatment!r} trains nothing, allowed are {', '.join(trained)}: name "
            "it as the control"
        )
    return treatment, control


def with_control(table: ScoreTable, treatment: str, control: str) -> ScoreTable:
    """Let a reference be the control: it scores the same for every seed and setting."""
    own = [row for row in table.references if row.arm == control]
    if not own:
        return table
    by_setting = {row.setting: row for row in own}
    anywhere = own[0] if list(by_setting) == [""] else None
    paired = [
        replace(row, seed=run.seed, setting=run.setting)
        for run in table.runs(treatment)
        if (row := by_setting.get(run.setting, anywhere)) is not None
    ]
    return replace(table, rows=(*table.rows, *paired))


def _run_rows(runs: RunSet, group: str) -> Iterator[ScoreRow]:
    seen = Counter((r.arm, r.setting, r.seed) for r in runs.runs)
    for line, run in enumerate(runs.runs, start=1):
        if seen[run.arm, run.setting, run.seed] > 1 and run.trained:
            raise InputError(
                f"{runs.name} holds several runs of arm {run.arm!r}, setting {run.setting!r}, seed "
                f"{run.seed}, such as {run.run_id}: report one suite at a time"
            )
        exact, num_items = _exact_score(run, group, runs.score)
        seed = str(run.seed) if run.trained else None
        yield ScoreRow(run.arm, run.setting, seed, exact, FLOAT_DIGITS, num_items, line)


def _exact_score(run: ReportedRun, group: str, score: str) -> tuple[Fraction, int | None]:
    """The score, exact where it is a count of right answers, then with the number of items."""
    found: Mapping[str, Any] = run.result["groups"][group]
    value, num_items = found[score], found["num_items"]
    if METRICS[run.result["metric"]].binary and "num_samples" not in found:
        exact = Fraction(round(value * num_items), num_items)
        return exact if abs(exact - Fraction(value)) < ROUNDING else Fraction(value), num_items
    return Fraction(value), None


def _constant_row(runs: RunSet, group: str) -> Iterator[ScoreRow]:
    """The best constant answer, where it is known."""
    found = runs.runs[0].result["groups"][group]
    score = found.get(f"best_constant_{runs.score}")
    if score is None:
        return
    answer = " ".join(str(found["best_constant_answer"]).split())
    shown = answer if len(answer) <= LONGEST_ANSWER else f"{answer[:LONGEST_ANSWER]}…"
    exact, num_items = Fraction(score), None
    if METRICS[runs.runs[0].result["metric"]].binary:
        num_items = found["num_items"]
        exact = Fraction(round(score * num_items), num_items)
    yield ScoreRow(f"{CONSTANT} ({shown})", "", None, exact, FLOAT_DIGITS, num_items, 0)
