"""The command line: every command reads settings, calls one library function and prints.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 failed, 2 bad input,
3 some runs of several failed, 130 interrupted.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.console import Console

from schemabank import __version__
from schemabank.errors import InputError

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


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration.", show_default=False)],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: runs/ and CONFIG's name.")
    ] = None,
) -> None:
    """Train and evaluate the runs of a configuration; finished runs are reused."""
    from schemabank.configfile import load_experiment
    from schemabank.experiment import run_experiment
    from schemabank.progress import reporter

    experiment = load_experiment(config, overrides or ())
    with reporter() as progress:
        outcomes = run_experiment(experiment, out or Path("runs") / config.stem, progress)
    _print_results(
        [o.result for o in outcomes if o.result is not None],
        failed=[o.folder.name for o in outcomes if o.failure is not None],
    )
    for outcome in outcomes:
        if outcome.failure is not None:
            sys.stderr.write(f"failed: {outcome.folder}: {outcome.failure}\n")
        elif (outcome.folder / "adapter").is_dir():
            sys.stdout.write(f"adapter: {outcome.folder / 'adapter'}\n")
    failed = sum(outcome.failure is not None for outcome in outcomes)
    if failed:
        raise typer.Exit(1 if failed == len(outcomes) else 3)


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
    from schemabank.bank import Routing
    from schemabank.progress import reporter
    from schemabank.saved import evaluate_saved

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
    _print_results([o.result for o in outcomes if o.result is not None])
    for outcome in outcomes:
        sys.stdout.write(f"predictions: {outcome.folder / 'predictions.jsonl'}\n")


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
            metavar="COLUMN",
            help="Relate it to schemas; default: every column with few enough values.",
        ),
    ] = None,
    meaning: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Same for examples that mean the same."),
    ] = None,
    wording: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="How an example is said.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: inside RUN/routing.")
    ] = None,
) -> None:
    """Look into a run's router: what it chooses, on what, and how that came about."""
    from schemabank.progress import reporter
    from schemabank.routing.analysis import Question
    from schemabank.routing.command import route
    from schemabank.routing.report import tables

    question = Question(
        split=split, limit=limit, fields=tuple(field or ()), meaning=meaning, wording=wording
    )
    with reporter() as progress:
        folder, report = route(run, question, overrides or (), out, progress)
    _print_tables(tables(report))
    sys.stdout.write(f"tables and figures: {folder / 'routing.md'}\n")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model with the adapter merged in.")
    ] = False,
) -> None:
    """Write a run's adapter, or the merged model, and check it by loading it again."""
    from schemabank.saved import export_run

    difference = export_run(run, out, merge=merge)
    sys.stdout.write(f"{out}: reloaded, largest relative difference of logits {difference:.1e}\n")


@app.command()
def score(
    _task: Annotated[Literal["gsm8k", "gsm_symbolic"], typer.Argument(metavar="TASK")],
    file: Annotated[Path, typer.Argument(help="JSON lines with completion and gold.")],
) -> None:
    """Score completions made elsewhere; print one JSON object a row."""
    from schemabank.answers import score_lines

    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(file)!r} ({error}): name a JSONL file") from error
    rows = [json.dumps(row, ensure_ascii=False) for row in score_lines(lines)]
    sys.stdout.write("".join(row + "\n" for row in rows))


@app.command("config-schema")
def config_schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    from schemabank.config import ExperimentConfig

    sys.stdout.write(json.dumps(ExperimentConfig.model_json_schema(), indent=2) + "\n")


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Handle options of the program itself."""
    if version:
        sys.stdout.write(f"schemabank {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Run the program and turn our exceptions into exit codes; typer handles its own."""
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except (RuntimeError, OSError) as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    sys.stderr.write(f"schemabank: {' '.join(str(error).split())}\n")
    sys.exit(code)


def _print_results(results: list[dict[str, object]], failed: Sequence[str] = ()) -> None:
    from schemabank.table import results_tables

    if results or failed:
        _console().print(*results_tables(results, failed=failed), sep="\n")


def _print_tables(tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> None:
    from schemabank.table import plain_table

    _console().print(*(plain_table(*table) for table in tables), sep="\n")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)
