"""What commands print: tables, lines, JSON, and which runs have failed."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from schemabank.adapters.peftcheck import read_check
from schemabank.common.errors import printable
from schemabank.common.lines import json_text

if TYPE_CHECKING:  # torch takes seconds to import
    from schemabank.common.tables import PlainTable
    from schemabank.runs.members import Outcome

PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe: nothing is cut


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
            warn(f"warning: {outcome.folder}: the adapter {check.said}")
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        said = printable(f"failed: {outcome.folder}: {outcome.failure}", keep="\n")
        sys.stderr.write(f"{said}\n")
        if outcome.kept:  # on a line of its own, since it ends with a command to be copied
            warn(f"kept: {outcome.kept}")
    if any(not outcome.failure.is_settled for outcome in failed if outcome.failure):
        sys.stderr.write("the same command again tries what failed and reuses what is finished\n")
    if failed or doubted:
        raise typer.Exit(1 if len(failed) == len(outcomes) > 0 else 3)


def print_json(value: object) -> None:
    """Print a value as JSON, for other programs."""
    sys.stdout.write(json_text(value, indent=2) + "\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print each line for people; what steers a terminal is left out."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def warn(line: str) -> None:
    """Write a line to stderr; what steers a terminal is left out."""
    sys.stderr.write(f"{printable(line)}\n")


def print_results(outcomes: Sequence["Outcome"]) -> None:
    """Print the results of runs, the failed ones among them by name."""
    from schemabank.runs.tables import results_tables, skipped_lines

    results = [o.result for o in outcomes if o.result is not None]
    failed = {o.folder.name: o.failure.kind for o in outcomes if o.failure is not None}
    if outcomes:
        console().print(*results_tables(results, failed=failed), sep="\n")
    print_lines(skipped_lines(results))


def print_tables(tables: Sequence["PlainTable"]) -> None:
    """Print tables, one below the other."""
    from schemabank.common.tables import plain_table

    console().print(*(plain_table(*table) for table in tables), sep="\n")


def console() -> Console:
    """Return the console of stdout, wide enough for every table where it is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)
