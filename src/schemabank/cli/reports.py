"""The commands that compare runs: the report, and the plan of a comparison."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from schemabank.cli.options import Control, Group, Primary, Treatment
from schemabank.cli.printing import print_json, print_lines, print_tables


def report(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RUNS_OR_TABLE",
            help="Folder of runs, or a CSV: arm,epochs,seed,score[,n_items], shares.",
        ),
    ],
    claims: Annotated[
        Path | None, typer.Option(help="CSV of claims; default: TABLE.claims.csv, if there.")
    ] = None,
    treatment: Treatment = None,
    control: Control = None,
    primary: Primary = None,
    group: Group = None,
    test_size: Annotated[
        int | None, typer.Option(min=1, help="Items of the whole test split.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist.")] = None,
) -> None:
    """Examine runs or a table of results: figures, and what a sceptical reviewer would raise."""
    from schemabank.report.command import Question
    from schemabank.report.command import report as examined

    question = Question(
        treatment=treatment,
        control=control,
        primary=primary,
        test_size=test_size,
        claims=claims,
        group=group,
    )
    found = examined(results, question, out)
    from schemabank.report.contents import report_json
    from schemabank.report.page import tables, text

    if as_json:
        print_json(report_json(found))
    else:
        print_tables(tables(found))
        sys.stdout.write(text(found))


def power(
    runs: Annotated[Path, typer.Argument(help="Folder of a pilot's runs.")],
    treatment: Treatment = None,
    control: Control = None,
    primary: Primary = None,
    group: Group = None,
    seeds: Annotated[str, typer.Option(metavar="N,N", help="To plan for.")] = "4,8,12,16,24",
    items: Annotated[
        str | None, typer.Option(metavar="N,N", help="Default: the pilot's, the whole split's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say how many seeds and items a comparison of two arms takes, from a pilot."""
    from schemabank.report import planning
    from schemabank.report.command import Question

    question = Question(treatment=treatment, control=control, primary=primary, group=group)
    plan = planning.plan_comparison(runs, question, seeds, items)
    if as_json:
        print_json(planning.plan_json(plan))
    else:
        print_lines(planning.heading(plan))
        print_tables([planning.table(plan)])
        print_lines(planning.conclusions(plan))
