"""Options that several commands have."""

from typing import Annotated

import typer

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
