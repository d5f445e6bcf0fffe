"""What may be asked of a report on the command line: its options, as typer reads them."""

from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[
    Path | None,
    typer.Argument(
        metavar="RESULTS",
        help="Folder of runs, their packed record, a CSV (arm,epochs,seed,score[,n_items] or "
        "arm,seed,item,score[,task][,cluster], shares), or a folder of lm-evaluation-harness or "
        "Inspect results.",
    ),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PATH", help="Instead of RESULTS: an arm's own results; NAME:SEED=PATH too."
    ),
]
Metric = Annotated[
    str | None, typer.Option(help="Of other tools' results; default: each task's first.")
]
ClusterBy = Annotated[
    str | None,
    typer.Option(metavar="FIELD", help="Of other tools' items: those with one value vary as one."),
]
Claims = Annotated[
    Path | None, typer.Option(help="CSV of claims; default: TABLE.claims.csv, if there.")
]
Margin = Annotated[
    float | None,
    typer.Option(metavar="POINTS", help="Largest difference that does not matter, in points."),
]
FailIfWorse = Annotated[
    bool,
    typer.Option(
        "--fail-if-worse",
        help="Exit with 1 if the treatment is worse; with a margin, unless it is shown not to be.",
    ),
]
Pilot = Annotated[
    Path | None, typer.Argument(help="Folder of a pilot's runs, or their packed record.")
]
Seeds = Annotated[str, typer.Option(metavar="N,N", help="To plan for.")]
Items = Annotated[
    str | None, typer.Option(metavar="N,N", help="Default: the pilot's, the whole split's.")
]
Spreads = Annotated[
    str | None,
    typer.Option(
        metavar="seeds=X,items=X,answers=X",
        help="Instead of a pilot: standard deviations of the arms' difference, in points.",
    ),
]
Find = Annotated[
    float | None,
    typer.Option(metavar="POINTS", help="Say how many seeds find this true difference."),
]
Power = Annotated[float, typer.Option(metavar="P", help="Probability of finding a difference.")]
