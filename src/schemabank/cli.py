"""The command line: every command reads settings, calls one library function and prints.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 failed, 2 bad input,
3 some runs of several failed, or an adapter is not what was trained or cannot be checked,
130 interrupted.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.console import Console

from schemabank import __version__
from schemabank.adapters.peftcheck import read_check
from schemabank.common.errors import FailedRunsError, InputError
from schemabank.common.quiet import quiet_libraries
from schemabank.report import options
from schemabank.runs.progress import reporter

if TYPE_CHECKING:  # torch takes seconds to import
    from schemabank.common.tables import PlainTable
    from schemabank.runs.members import Outcome

PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe: nothing is cut

app = typer.Typer(
    help="LoRA adapters trained with sparse routing as a curriculum, compared with plain LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
]
Treatment = Annotated[str | None, typer.Option(metavar="ARM", help="Arm examined.")]
Control = Annotated[str | None, typer.Option(metavar="ARM", help="Arm that it is compared with.")]
Primary = Annotated[
    str | None,
    typer.Option(
        metavar="SETTING", help="Declared primary, in epochs say; default: mean over all."
    ),
]
Group = Annotated[
    str | None, typer.Option(help="Part of the split to compare runs on; default: the first.")
]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration.", show_default=False)],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: runs/ and CONFIG's name.")
    ] = None,
) -> None:
    """Train and evaluate the runs of a configuration; finished runs are reused."""
    from schemabank.config.file import load_experiment
    from schemabank.runs.experiment import run_experiment
    from schemabank.runs.fairness import unequal_arms

    experiment = load_experiment(config, overrides or ())
    with reporter() as progress:
        outcomes = run_experiment(experiment, out or Path("runs") / config.stem, progress)
    _print_results(outcomes)
    unequal = unequal_arms(experiment.runs(), [o.result for o in outcomes])
    _print_lines(f"unequal: {sentence}" for sentence in unequal)
    adapters = [o.folder / "adapter" for o in outcomes if o.failure is None]
    _print_lines(f"adapter: {adapter}" for adapter in adapters if adapter.is_dir())
    exit_for_failures(outcomes)


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(help="YAML suite.", show_default=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be computed.")
    ] = False,
    tune_only: Annotated[
        bool, typer.Option("--tune-only", help="Stop when the learning rates are chosen.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs trained at once; default: engine.slots.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: runs/ and the suite's name.")
    ] = None,
) -> None:
    """Train and evaluate every run of a suite; call it again to go on where it stopped."""
    from schemabank.suites.execution import plan_suite, planned_rows, run_suite
    from schemabank.suites.suite import load_suite

    if dry_run and tune_only:
        raise InputError("--dry-run and --tune-only were both given: leave out one of them")
    changes = [*(overrides or ()), *([f"engine.slots={slots}"] if slots else [])]
    found = load_suite(file, changes)
    place = out or Path("runs") / (file.parent.name if file.stem == "suite" else file.stem)
    with reporter() as progress:
        if dry_run and as_json:
            _print_json(planned_rows(found, place))
            return
        if dry_run:
            print_tables(plan_suite(found, place, progress))
            return
        ended = run_suite(found, place, progress, tune_only=tune_only)
    if as_json:
        _print_json(ended.rows())
    else:
        print_tables(ended.tables())
        _print_lines(f"unequal: {sentence}" for sentence in ended.inequalities())
        report = f"schemabank report {place} --out {place}/report"
        sys.stdout.write(f"next: {'the same without --tune-only' if tune_only else report}\n")
    exit_for_failures(ended.outcomes, trials=ended.trials)


@app.command("eval")
def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="Folder of a run or a LoRA adapter.")
    ],
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Default: the run's own task.")
    ] = None,
    routing: Annotated[
        Literal["off", "on", "dense", "all"] | None,
        typer.Option(help="Bank at evaluation, all for each in turn; default: the run's own."),
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, help="Worked examples in the prompt; likewise.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="First items of every group; likewise.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; must not exist.")] = None,
) -> None:
    """Evaluate a run or any plain LoRA adapter."""
    from schemabank.methods.schemabank.bank import Routing
    from schemabank.runs.saved import evaluate_saved

    options = {
        "task.name": task,
        "eval.routing": None if routing == "all" else routing,
        "eval.few_shot": few_shot,
        "eval.limit": limit,
    }
    settings = [f"{key}={value}" for key, value in options.items() if value is not None]
    settings += overrides or ()
    with reporter() as progress:
        routings = get_args(Routing) if routing == "all" else ()
        outcomes = evaluate_saved(run, settings, out, progress, routings=routings)
    _print_results(outcomes)
    _print_lines(f"predictions: {outcome.folder / 'predictions.jsonl'}" for outcome in outcomes)


@app.command()
def routing(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of the arm schemabank.")],
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="Whose examples to route; default: what the run was evaluated on."),
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="First examples of every group.")] = 256,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Relate it to schemas; default: every field with few and short values.",
        ),
    ] = None,
    meaning: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Same for examples that mean the same."),
    ] = None,
    wording: Annotated[
        str | None, typer.Option(metavar="FIELD", help="How an example is said.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: inside RUN/routing.")
    ] = None,
) -> None:
    """Analyse a run's routers: what they choose, for which examples, and how that changed."""
    from schemabank.report.routing.command import route
    from schemabank.report.routing.report import tables
    from schemabank.report.routing.routed import RoutingQuestion

    question = RoutingQuestion(
        split=split, limit=limit, fields=tuple(field or ()), meaning=meaning, wording=wording
    )
    with reporter() as progress:
        folder, report = route(run, question, overrides or (), out, progress)
    print_tables(tables(report))
    sys.stdout.write(f"tables and figures: {folder / 'routing.md'}\n")


@app.command()
def report(
    results: options.Results = None,
    arm: options.Arms = None,
    metric: options.Metric = None,
    cluster_by: options.ClusterBy = None,
    claims: options.Claims = None,
    treatment: Treatment = None,
    control: Control = None,
    primary: Primary = None,
    group: Group = None,
    test_size: Annotated[
        int | None, typer.Option(min=1, help="Items of the whole test split.")
    ] = None,
    margin: options.Margin = None,
    fail_if_worse: options.FailIfWorse = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist.")] = None,
) -> None:
    """Examine runs or a table of results: figures, and what a sceptical reviewer would raise."""
    from schemabank.report.command import Question, why_stop
    from schemabank.report.command import report as examined
    from schemabank.report.contents import report_json
    from schemabank.report.page import tables, text

    arms = tuple(arm or ())
    question = Question(
        treatment, control, primary, test_size, claims, group, margin, arms, metric, cluster_by
    )
    found = examined(results, question, out)
    stop = why_stop(found) if fail_if_worse else None
    if as_json:
        _print_json(report_json(found))
    else:
        print_tables(tables(found))
        sys.stdout.write(text(found))
    if stop is not None:
        sys.stderr.write(f"worse: {stop}\n")
        raise typer.Exit(1)


@app.command("power")
def plan_power(
    runs: options.Pilot = None,
    treatment: Treatment = None,
    control: Control = None,
    primary: Primary = None,
    group: Group = None,
    seeds: options.Seeds = "4,8,12,16,24",
    items: options.Items = None,
    spreads: options.Spreads = None,
    difference: options.Find = None,
    power: options.Power = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say how many seeds and items a comparison of two arms takes, from a pilot or spreads."""
    from schemabank.report import planning
    from schemabank.report.command import Question

    question = Question(treatment, control, primary, group=group)
    wanted = planning.Wanted(seeds, items, difference, power)
    plan = planning.plan(runs, spreads, question, wanted)
    if as_json:
        _print_json(planning.plan_json(plan))
    else:
        _print_lines(planning.heading(plan))
        print_tables([planning.table(plan)])
        _print_lines(planning.conclusions(plan))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model with the adapter merged in.")
    ] = False,
) -> None:
    """Write a run's adapter, or the merged model, and check it by loading it again."""
    from schemabank.runs.saved import export_run

    with reporter() as progress:
        check = export_run(run, out, merge=merge, note=progress.note)
    if not check.is_made:
        what = "the merged model" if merge else "the adapter"
        sys.stdout.write(f"{out}: written, but not checked\n")
        sys.stderr.write(f"warning: {out}: {what} {check.said}\n")
        raise typer.Exit(3)
    sys.stdout.write(
        f"{out}: reloaded, largest relative difference of logits {check.difference:.1e}, "
        f"of which rounding explains up to {check.allowed:.1e}\n"
    )


@app.command()
def score(
    _task: Annotated[Literal["gsm8k", "gsm_symbolic"], typer.Argument(metavar="TASK")],
    file: Annotated[Path, typer.Argument(help="JSON lines with completion and gold.")],
) -> None:
    """Score completions made elsewhere; print one JSON object a row."""
    from schemabank.common.files import LARGEST_JSON, read_text
    from schemabank.tasks.scoring.answers import score_lines

    lines = read_text(file, at_most=LARGEST_JSON).split("\n")
    _print_lines(json.dumps(row, ensure_ascii=False) for row in score_lines(lines))


@app.command("config-schema")
def config_schema(
    of_suites: Annotated[bool, typer.Option("--suite", help="That of suite files.")] = False,
) -> None:
    """Print the JSON Schema of configuration files, for editors."""
    from schemabank.config.settings import ExperimentConfig
    from schemabank.suites.file import SuiteConfig

    _print_json((SuiteConfig if of_suites else ExperimentConfig).model_json_schema())


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Handle options of the program itself."""
    if version:
        sys.stdout.write(f"schemabank {__version__}\n")
        raise typer.Exit


def main(program: Callable[[], object] | None = None) -> None:
    """Run a program (ours) and turn our exceptions into exit codes; typer handles its own."""
    try:
        with quiet_libraries():
            (program or app)()
    except InputError as error:
        _fail(error, 2)
    except FailedRunsError as error:
        _fail(error, 3)
    except (MemoryError, RuntimeError, OSError) as error:
        from schemabank.common.memory import with_memory_named

        _fail(with_memory_named(error), 1)


def _fail(error: Exception, code: int) -> None:
    sys.stderr.write(f"schemabank: {' '.join(str(error).split())}\n")
    sys.exit(code)


def exit_for_failures(outcomes: Sequence["Outcome"], *, trials: Sequence["Outcome"] = ()) -> None:
    """Name failed runs and adapters in doubt; exit with 1 if all runs failed, with 3 if any did.

    A doubted adapter also means 3. Failed trials are not named: they have diverged, which the
    search takes into account and has noted.
    """
    doubted = False
    for outcome in (*trials, *outcomes):
        check = read_check(outcome.result)
        if check is not None and not check.agrees:
            doubted = True
            sys.stderr.write(f"warning: {outcome.folder}: the adapter {check.said}\n")
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        sys.stderr.write(f"failed: {outcome.folder}: {outcome.failure}\n")
    if any(not outcome.failure.is_settled for outcome in failed if outcome.failure):
        sys.stderr.write("the same command again tries what failed and reuses what is finished\n")
    if failed or doubted:
        raise typer.Exit(1 if len(failed) == len(outcomes) > 0 else 3)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _print_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _print_results(outcomes: Sequence["Outcome"]) -> None:
    from schemabank.runs.tables import results_tables, skipped_lines

    results = [o.result for o in outcomes if o.result is not None]
    failed = {o.folder.name: o.failure.kind for o in outcomes if o.failure is not None}
    if outcomes:
        _console().print(*results_tables(results, failed=failed), sep="\n")
    _print_lines(skipped_lines(results))


def print_tables(tables: Sequence["PlainTable"]) -> None:
    """Print tables, one below the other."""
    from schemabank.common.tables import plain_table

    _console().print(*(plain_table(*table) for table in tables), sep="\n")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)
