"""The commands that go on with what was trained: evaluate it, look into its router, export it.

Each looks at the folder before it imports what computes, which does so again: what is no run is
refused at once, without torch.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from schemabank.cli.options import Overrides, task_names
from schemabank.cli.printing import print_lines, print_results, print_tables, warn
from schemabank.runs.progress import reporter


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="Folder of a run or a LoRA adapter.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="Default: the run's own task.", autocompletion=task_names
        ),
    ] = None,
    routing: Annotated[
        Literal["off", "on", "dense", "all"] | None,
        typer.Option(help="Bank at evaluation, all for each in turn; default: the run's own."),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(min=0, help="Worked examples in the prompt; default: the run's own."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="First items of every group; default: the run's own.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; must not exist.")] = None,
) -> None:
    """Evaluate a run or any plain LoRA adapter."""
    from schemabank.runs.located import asked_of_evaluation

    options = {
        "task.name": task,
        "eval.routing": None if routing == "all" else routing,
        "eval.few_shot": few_shot,
        "eval.limit": limit,
    }
    settings = [f"{key}={value}" for key, value in options.items() if value is not None]
    settings += overrides or ()
    asked_of_evaluation(run, settings)
    from schemabank.methods.schemabank.bank import Routing
    from schemabank.runs.saved import evaluate_saved

    with reporter() as progress:
        routings = get_args(Routing) if routing == "all" else ()
        outcomes = evaluate_saved(run, settings, out, progress, routings=routings)
    print_results(outcomes)
    print_lines(f"predictions: {outcome.folder / 'predictions.jsonl'}" for outcome in outcomes)


def routing(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run of the arm schemabank.")
    ],
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
        typer.Option(metavar="FIELD", help="It is the same for examples that mean the same."),
    ] = None,
    wording: Annotated[
        str | None, typer.Option(metavar="FIELD", help="It says how an example is worded.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: inside RUN/routing.")
    ] = None,
) -> None:
    """Analyse a run's routers: what they choose, for which examples, and how that changed."""
    from schemabank.runs.located import asked_of_routing

    asked_of_routing(run, overrides or ())
    from schemabank.report.routing.command import route
    from schemabank.report.routing.report import tables
    from schemabank.report.routing.routed import RoutingQuestion

    question = RoutingQuestion(
        split=split, limit=limit, fields=tuple(field or ()), meaning=meaning, wording=wording
    )
    with reporter() as progress:
        folder, report = route(run, question, overrides or (), out, progress)
    print_tables(tables(report))
    print_lines([f"tables and figures: {folder / 'routing.md'}"])


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model with the adapter merged in.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the adapter's files call the base model, such as its id on the hub; "
            "default: as the run did.",
        ),
    ] = None,
) -> None:
    """Write a run's adapter, or the merged model, and check it by loading it again."""
    from schemabank.runs.located import locate

    locate(run)
    from schemabank.runs.saved import export_run

    with reporter() as progress:
        check = export_run(run, out, merge=merge, base_name=base_model, note=progress.note)
    if not check.is_made:
        what = "the merged model" if merge else "the adapter"
        print_lines([f"{out}: written, but not checked"])
        warn(f"warning: {out}: {what} {check.said}")
        raise typer.Exit(3)
    found = f"largest relative difference of logits {check.difference:.1e}"
    print_lines([f"{out}: reloaded, {found}, of which rounding explains up to {check.allowed:.1e}"])


def score(
    _task: Annotated[Literal["gsm8k", "gsm_symbolic"], typer.Argument(metavar="TASK")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines with completion and gold.")
    ],
) -> None:
    """Score completions made elsewhere; print one JSON object a row."""
    from schemabank.common.files import LARGEST_JSON, read_text
    from schemabank.common.lines import json_text
    from schemabank.tasks.scoring.answers import score_lines

    lines = read_text(file, at_most=LARGEST_JSON).split("\n")
    rows = [json_text(row) for row in score_lines(lines)]
    sys.stdout.write("".join(f"{row}\n" for row in rows))
