"""The command that looks at the machine: one screen, what is there and how to get the rest."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from schemabank.cli.printing import console, print_json
from schemabank.common.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from schemabank.runs.readiness import Readiness

# How a state is shown: a word, and its style on a terminal.
MARKS = {"ok": ("ok", "green"), "absent": ("-", "yellow"), "missing": ("missing", "bold red")}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what is installed and found here, and the commands that get what is missing."""
    from schemabank.runs.readiness import examine_machine, is_ready

    found = examine_machine()
    ready = is_ready(found)
    if as_json:
        print_json({"ready": ready, "checks": [asdict(one) for one in found]})
    else:
        console().print(_screen(found))
        if ready:
            sys.stdout.write(
                "ready: schemabank init -o config.yaml && schemabank train config.yaml\n"
            )
    if not ready:
        missing = ", ".join(one.name for one in found if one.state == "missing")
        sys.stderr.write(
            f"schemabank: what `schemabank init` writes cannot be trained without {missing}\n"
        )
        raise typer.Exit(1)


def _screen(found: "list[Readiness]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    screen = Table.grid(padding=(0, 2))
    screen.add_column(no_wrap=True)
    screen.add_column(no_wrap=True)
    screen.add_column(overflow="fold")
    for one in found:
        lines = [one.finding, *([f"  {one.mend}"] if one.mend else [])]
        screen.add_row(
            Text(*MARKS[one.state]), Text(one.name), Text(printable("\n".join(lines), keep="\n"))
        )
    return screen
