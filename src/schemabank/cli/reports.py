"""The commands that compare runs: the report, and the plan of a comparison."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from schemabank.cli.options import Control, Group, Primary, Treatment
from schemabank.cli.printing import print_json, print_lines, print_tables, warn

Results = Annotated[
    Path | None,
    typer.Argument(
        metavar="RESULTS",
        help="Folder of runs, their packed record, a CSV (arm,epochs,seed,score[,n_items] or "
        "arm,seed,item,score[,task][,cluster], shares), or a folder of results of "
        "lm-evaluation-harness, Inspect, PEFT's method comparison or Weights & Biases.",
        show_default=False,
    ),
]
ArmPaths = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PATH",
        help="Instead of RESULTS, an arm's own results of another tool; or NAME:SEED=PATH.",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(help="Of other tools' results; default: each task's first, for W&B none."),
]
ClusterBy = Annotated[
    str | None,
    typer.Option(metavar="FIELD", help="Of other tools' items, what they were drawn with."),
]
Claims = Annotated[
    Path | None, typer.Option(help="CSV of claims; default: TABLE.claims.csv, if there.")
]
TestSize = Annotated[int | None, typer.Option(min=1, help="Items of the whole test split.")]
Margin = Annotated[
    float | None,
    typer.Option(metavar="POINTS", help="Largest difference that does not matter, in points."),
]
FailIfWorse = Annotated[
    bool,
    typer.Option(
        "--fail-if-worse",
        help="Exit with 1 if the treatment is worse; with a margin, unless shown not to be.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write; must not exist.")]


def report(
    results: Results = None,
    arm: ArmPaths = None,
    metric: Metric = None,
    cluster_by: ClusterBy = None,
    claims: Claims = None,
    treatment: Treatment = None,
    control: Control = None,
    primary: Primary = None,
    group: Group = None,
    test_size: TestSize = None,
    margin: Margin = None,
    fail_if_worse: FailIfWorse = False,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Examine results: verdict, figures, and what a sceptical reviewer would raise."""
    from schemabank.report.command import Question, why_stop
    from schemabank.report.command import report as examined

    question = Question(
        treatment=treatment,
        control=control,
        primary=primary,
        test_size=test_size,
        claims=claims,
        group=group,
        margin=margin,
        arms=tuple(arm or ()),
        metric=metric,
        cluster_by=cluster_by,
    )
    found = examined(results, question, out)
    stop = why_stop(found) if fail_if_worse else None
    from schemabank.report.contents import report_json
    from schemabank.report.page import tables, text

    if as_json:
        print_json(report_json(found))
    else:
        print_tables(tables(found))
        sys.stdout.write(text(found))
    if stop is not None:
        warn(f"worse: {stop}")
        raise typer.Exit(1)


def power(
    runs: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUNS",
            help="Folder of a pilot's runs, or their packed record.",
            show_default=False,
        ),
    ] = None,
    treatment: Treatment = None,
    control: Control = None,
    primary: Primary = None,
    group: Group = None,
    seeds: Annotated[str, typer.Option(metavar="N,N", help="To plan for.")] = "4,8,12,16,24",
    items: Annotated[
        str | None, typer.Option(metavar="N,N", help="Default: the pilot's, the whole split's.")
    ] = None,
    spreads: Annotated[
        str | None,
        typer.Option(
            metavar="seeds=X,items=X,answers=X",
            help="Instead of a pilot: standard deviations of the arms' difference, in points.",
        ),
    ] = None,
    difference: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Say how many seeds find this true difference."),
    ] = None,
    probability: Annotated[
        float, typer.Option("--power", metavar="P", help="Probability of finding a difference.")
    ] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say how many seeds and items a comparison of two arms takes, from a pilot or spreads."""
    from schemabank.report import planning
    from schemabank.report.command import Question

    question = Question(treatment=treatment, control=control, primary=primary, group=group)
    wanted = planning.Wanted(seeds, items, difference, probability)
    plan = planning.plan(runs, spreads, question, wanted)
    if as_json:
        print_json(planning.plan_json(plan))
    else:
        print_lines(planning.heading(plan))
        print_tables([planning.table(plan)])
        print_lines(planning.conclusions(plan))
