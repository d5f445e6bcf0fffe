"""Run the document's experiment and compare it with the document's own figures.

    python benchmarks/original.py
    python benchmarks/original.py --model DIR --out runs/paper
    python benchmarks/original.py --compare-only

It trains and evaluates the 40 runs of ``configs/paper/suite.yaml`` as ``schemabank suite`` does,
with the same exit codes, and goes on where it stopped. It writes their report and prints one table:
each arm and length, as the document has it and as it came out here. It needs Qwen/Qwen2-0.5B (from
the hub, or a folder in ``--model``) and GSM8K (from the hub, or the folder in ``SCHEMABANK_DATA``).
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemabank.cli import main
from schemabank.cli.options import Overrides
from schemabank.cli.printing import exit_for_failures, print_tables
from schemabank.common.errors import InputError
from schemabank.common.extras import require
from schemabank.common.tables import PlainTable, markdown_table
from schemabank.common.writing import settle
from schemabank.report.command import HTML, Question
from schemabank.report.command import report as write_report
from schemabank.report.reading.runs import read_runs
from schemabank.report.reading.settings import words
from schemabank.report.reading.table import ScoreRow, ScoreTable, read_scores
from schemabank.report.reading.tabulate import CONSTANT, as_table
from schemabank.runs.folder import CONFIG, is_finished
from schemabank.runs.progress import reporter
from schemabank.stats import welch_difference

if TYPE_CHECKING:  # torch takes seconds to import
    from schemabank.config.settings import RunConfig
    from schemabank.suites.execution import SuiteOutcome
    from schemabank.suites.file import Suite

ROOT = Path(__file__).parent.parent
SUITE = ROOT / "configs" / "paper" / "suite.yaml"
PUBLISHED = ROOT / "results" / "published" / "gsm8k.csv"
RECORD = ROOT / "results" / "benchmarks" / "nvidia-h200.json"
ORDERS = ROOT / "results" / "epoch_orders.json"
REPORT = "report"
COMPARISON = "original.md"  # in the report's folder; by it a report of this program is known
TASK = ("gsm8k", "numeric")  # and its metric
LAST_NUMBER = "flexible"  # the score by the last number alone
OPEN = {"seed", "model.dtype"}  # what differs from run to run, and from machine to machine
HEAD = ("arm", "epochs", "document", "its range", "here", "range", "by last number", "seeds")
HEAD += ("difference", "95 %")

Place = tuple[str, str]  # arm and epochs
Scores = Mapping[str, Fraction]  # by seed

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=(__doc__ or "").partition("\n")[0])
def original(
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the weights; default: Qwen/Qwen2-0.5B.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/paper"),
    compare_only: Annotated[
        bool, typer.Option("--compare-only", help="Only print the table of the runs in --out.")
    ] = False,
) -> None:
    """Run the suite, write its report, and print the comparison."""
    changes = [*(overrides or ()), *([f"model.name={model}"] if model else [])]
    if compare_only and changes:
        raise InputError(
            f"--compare-only trains nothing, so {changes[0]!r} would change nothing: leave out one "
            "of them"
        )
    if compare_only:
        _print_comparison(*compare(out))
        return
    ended = run(changes, out)
    if any(outcome.failure is None for outcome in ended.outcomes):
        table, notes = compare(out)
        _print_comparison(table, [*notes, report_again(out, table, notes)])
    exit_for_failures(ended.outcomes)


def run(changes: Sequence[str], out: Path) -> "SuiteOutcome":
    """Say what will be computed, and compute what is not finished."""
    from schemabank.suites.execution import run_suite
    from schemabank.suites.suite import load_suite
    from schemabank.tasks.catalog import metric_of

    suite = load_suite(SUITE, changes)
    for own in suite.runs:
        check_task(own.config.task.name, metric_of(own.config.task))
    check_replaceable(out / REPORT)
    require("report", "the report at the end")
    sys.stderr.write("".join(f"{line}\n" for line in announcement(suite, out)))
    with reporter() as progress:
        return run_suite(suite, out, progress)


def announcement(suite: "Suite", out: Path) -> list[str]:
    """Say what will be computed and how long that takes, a sentence or two a line."""
    from schemabank.config.file import run_id

    done = sum(is_finished(out / run_id(run.config)) for run in suite.runs)
    arms = " and ".join(dict.fromkeys(run.arm for run in suite.runs))
    models = ", ".join(dict.fromkeys(run.config.model.name for run in suite.runs))
    epochs = ", ".join(dict.fromkeys(_epochs(run.point) for run in suite.runs))
    changed = changed_settings({(r.arm, _epochs(r.point)): r.config for r in suite.runs})
    return [
        f"the document's experiment: {len(suite.runs)} runs of {models}, {done} of them finished; "
        f"{arms} over {epochs} epochs; runs in {str(out)!r}, report in {str(out / REPORT)!r}",
        expected_time(),
        *_changes_in_words(changed),
    ]


def expected_time() -> str:
    """How long the whole suite took where it was measured, and what was different there."""
    (row,) = (row for row in _rows(RECORD) if row["case"] == "paper suite")
    planned = {row["orders"]: row["cost"] for row in _rows(ORDERS) if row["is_planned"]}
    return (
        f"expected time: about {row['total_s'] / 60:.0f} minutes on one {row['device']}, where "
        f"40 runs of this shape took {row['total_s']:.0f} s ({row['training_s']:.0f} s of "
        f"training, {row['evaluation_s']:.0f} s of evaluation on 500 questions each); that model "
        "had random weights, and no answer ended early; there was one order of batch lengths, and "
        f"with today's two training should take {planned[2] / planned[1] - 1:.0%} longer; for "
        f"another device `schemabank suite {SUITE.relative_to(ROOT)} --dry-run` estimates it"
    )


def compare(out: Path) -> tuple[PlainTable, list[str]]:
    """Return the table of the document's figures and ours, and what a reader must know.

    Raises:
        InputError: no run of the document's experiment is there.
    """
    from schemabank.config.file import load_run

    runs, document = read_runs(out), read_scores(PUBLISHED)
    first, group = runs.runs[0].result, runs.groups[0]
    check_task(first["task"], first["metric"])
    ours = as_table(runs, group)
    if not any(ours.scores(*place) for place in _places(document)):
        raise InputError(
            f"{str(out)!r} holds no run of the document's arms and lengths: allowed are runs of "
            f"{SUITE.relative_to(ROOT)}, name their folder with --out"
        )
    by_last = as_table(replace(runs, score=LAST_NUMBER), group)
    changed = changed_settings({(r.arm, r.setting): load_run(r.folder / CONFIG) for r in runs.runs})
    return comparison(document, ours, by_last), [*_notes(ours), *_changes_in_words(changed)]


def comparison(document: ScoreTable, ours: ScoreTable, by_last: ScoreTable) -> PlainTable:
    """Lay out the document's rows beside ours, and the best constant answers."""
    rows = [
        [*place, *_cells(document.scores(*place), ours.scores(*place), by_last.scores(*place))]
        for place in _places(document)
    ]
    (theirs,), own = document.references, _constant(ours)
    name, here = (theirs.arm, "") if own is None else (own.arm, _percent(own.exact))
    rows.append([name, "", _percent(theirs.exact), "", here, *[""] * 5])
    return "GSM8K, right answers in percent, difference in points", HEAD, rows


def report_again(out: Path, table: PlainTable, notes: Iterable[str]) -> str:
    """Write the report of the runs in place of an older one; say where it is."""
    final = out / REPORT
    with TemporaryDirectory(dir=out, prefix=f".{REPORT}-") as place:
        partial = Path(place) / REPORT
        try:
            write_report(out, Question(), partial)
        except InputError as error:  # such as an arm all of whose runs failed
            return f"no report: {error}"
        text = "\n".join([*markdown_table(*table[1:]), "", *(f"- {note}" for note in notes)])
        (partial / COMPARISON).write_text(f"{text}\n", encoding="utf-8")
        check_replaceable(final)
        if final.exists():
            shutil.rmtree(final)
        settle(partial, final)
    return f"report: {final / HTML}"


def check_replaceable(report: Path) -> None:
    """Find out, before anything is computed, whether a report may be written there.

    Raises:
        InputError: something is there that this program has not made.
    """
    if os.path.lexists(report) and not (report / COMPARISON).is_file():
        raise InputError(
            f"{str(report)!r} exists, and without {COMPARISON} it is no report of this program, so "
            "it is not replaced: move it away or choose another --out"
        )


def check_task(name: str, metric: str) -> None:
    """Refuse scores that cannot be compared with the document's.

    Raises:
        InputError: they are of another task, or by another metric.
    """
    if (name, metric) != TASK:
        raise InputError(
            f"the task is {name!r} with the metric {metric!r}, but the document's figures are of "
            f"{TASK[0]!r} with {TASK[1]!r}: leave both as they are, or use schemabank suite"
        )


def changed_settings(configs: Mapping[Place, "RunConfig"]) -> dict[str, tuple[object, object]]:
    """Return the settings in which runs differ from the document's: their value and its."""
    from schemabank.config.naming import dotted_settings
    from schemabank.suites.suite import load_suite

    found: dict[str, tuple[object, object]] = {}
    for run in load_suite(SUITE).runs:
        own = configs.get((run.arm, _epochs(run.point)))
        if own is not None:
            theirs, ours = dotted_settings(run.config), dotted_settings(own)
            found |= {
                name: (ours.get(name), value)
                for name, value in theirs.items()
                if name not in OPEN and ours.get(name) != value
            }
    return found


def _changes_in_words(changed: Mapping[str, tuple[object, object]]) -> list[str]:
    if not changed:
        return []
    each = (f"{n} {words(own)} instead of {words(its)}" for n, (own, its) in changed.items())
    return [f"these runs are not the document's: {', '.join(each)}"]


def _notes(ours: ScoreTable) -> list[str]:
    """What a reader of the table must know, a sentence each."""
    constant, num_items = _constant(ours), ours.rows[0].num_items
    assert constant is not None, "exact match always has one"
    return [
        "the difference is ours less the document's, with Welch's interval over seeds, on these "
        "questions alone; seeds are not paired, since the same one draws otherwise in other code",
        f"ours are the first {num_items} test questions; the document does not say which 500 it "
        "took",
        f"the {constant.arm} knows nothing of a question, so an arm that is not above it shows no "
        "skill",
        "the target has no end token, so a model does not learn to end its answer and may run on "
        "to the limit of new tokens",
        "`here` reads a number alone on the first line before any later one (docs/scoring.md); the "
        "document's public code reads the last whole number, much as `by last number` does",
        "that code differs from the document in other settings, too; the runs have the document's "
        "(docs/method.md)",
        "the learning rates are tuned for neither arm; configs/sound/suite.yaml is the fair "
        "comparison",
    ]


def _cells(theirs: Scores, ours: Scores, by_last: Scores) -> list[str]:
    """The cells behind arm and epochs."""
    document = [_mean(theirs), _span(theirs)]
    if not ours:
        return [*document, "", "", "", "0", "", ""]  # none has finished
    found = welch_difference(*(list(map(float, own.values())) for own in (ours, theirs)))
    ends = [f"{100 * end:+.2f}" for end in found.interval or ()]
    own = [_mean(ours), _span(ours), _mean(by_last), str(len(ours))]
    return [*document, *own, f"{100 * found.mean:+.2f}", " to ".join(ends)]


def _places(table: ScoreTable) -> list[Place]:
    return [(arm, epochs) for arm in table.trained for epochs in table.settings(arm)]


def _constant(ours: ScoreTable) -> ScoreRow | None:
    return next((row for row in ours.references if row.arm.startswith(CONSTANT)), None)


def _epochs(point: Mapping[str, object]) -> str:
    (value,) = point.values()
    return str(value)


def _mean(scores: Scores) -> str:
    return _percent(mean(scores.values()))


def _span(scores: Scores) -> str:
    return f"{100 * float(min(scores.values())):.1f}–{100 * float(max(scores.values())):.1f}"


def _percent(share: Fraction) -> str:
    return f"{100 * float(share):.2f}"


def _rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _print_comparison(table: PlainTable, notes: Iterable[str]) -> None:
    print_tables([table])
    sys.stdout.write("".join(f"{note}\n" for note in notes))


if __name__ == "__main__":
    main(app)
