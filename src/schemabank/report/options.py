"""What may be asked of a report on the command line: its options, as typer reads them."""

from typing import Annotated

import typer

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
