"""The commands that train: a configuration's runs, and a suite's.

Both read their file before they import the engine, and with it torch, which takes seconds: a file
that is refused is refused at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from schemabank.cli.options import Overrides
from schemabank.cli.printing import (
    exit_for_failures,
    print_json,
    print_lines,
    print_results,
    print_tables,
)
from schemabank.common.errors import InputError
from schemabank.common.extras import install_command, is_there
from schemabank.common.folders import check_local
from schemabank.common.garbage import importing
from schemabank.runs.progress import reporter

if TYPE_CHECKING:
    from schemabank.launch.launchers import LauncherName
    from schemabank.suites.execution import SuiteOutcome
    from schemabank.suites.file import Suite


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML configuration.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: runs/ and CONFIG's name.")
    ] = None,
) -> None:
    """Train and evaluate the runs of a configuration; finished runs are reused."""
    from schemabank.config.file import load_experiment

    place = _folder_of_runs(out, config.stem)
    experiment = load_experiment(config, overrides or ())
    with importing():
        from schemabank.runs.experiment import run_experiment
        from schemabank.runs.fairness import unequal_arms

    with reporter() as progress:
        outcomes = run_experiment(experiment, place, progress)
    print_results(outcomes)
    unequal = unequal_arms(experiment.runs(), [o.result for o in outcomes])
    print_lines(f"unequal: {sentence}" for sentence in unequal)
    adapters = [o.folder / "adapter" for o in outcomes if o.failure is None]
    print_lines(f"adapter: {adapter}" for adapter in adapters if adapter.is_dir())
    exit_for_failures(outcomes)


def suite(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML suite.", show_default=False)],
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
    launch: Annotated[
        Literal["local", "gpus", "ray"],
        typer.Option(help="Where runs train: here, on every GPU of this machine, on a cluster."),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; on a CPU they share its cores.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: runs/ and the suite's name.")
    ] = None,
) -> None:
    """Train and evaluate every run of a suite; call it again to go on where it stopped."""
    from schemabank.suites.file import read_suite_file

    if dry_run and tune_only:  # which has no effect where nothing is computed
        raise InputError("--dry-run and --tune-only were both given: leave out one of them")
    place = _folder_of_runs(out, file.parent.name if file.stem == "suite" else file.stem)
    changes = [*(overrides or ()), *([f"engine.slots={slots}"] if slots else [])]
    read = read_suite_file(file, changes)
    with importing():
        from schemabank.launch.launchers import launcher
        from schemabank.suites.execution import run_suite
        from schemabank.suites.suite import on_this_machine

    found = on_this_machine(read, file)
    if dry_run:
        _print_plan(found, place, launch=launch, workers=workers, as_json=as_json)
        return
    with reporter() as progress:
        trains = launcher(launch, workers, found.runs[0].config.engine.device)
        ended = run_suite(found, place, progress, tune_only=tune_only, launcher=trains)
    then = "the same without --tune-only" if tune_only else _report(place)
    _print_ended(ended, then, as_json=as_json)
    exit_for_failures(ended.outcomes, trials=ended.trials)


def _folder_of_runs(out: Path | None, name: str) -> Path:
    """Return the folder of a command's runs.

    An address is refused here, before the engine is imported and a cluster is reached, and also by
    a dry run, which writes nothing. What is called from Python refuses it where it writes.

    Raises:
        InputError: it is an address.
    """
    place = out or Path("runs") / name
    check_local(place)
    return place


def _print_plan(
    found: "Suite", place: Path, *, launch: "LauncherName", workers: int | None, as_json: bool
) -> None:
    """Print what a suite would compute, as far as it is known.

    Raises:
        InputError: what a call that computes would refuse.
    """
    from schemabank.suites.plan import plan_suite

    with reporter() as progress:
        plan = plan_suite(
            found, place, progress, launch=launch, workers=workers, with_cohorts=not as_json
        )
    if as_json:
        print_json(plan.rows())
    else:
        print_tables(plan.tables())
    if plan.refusal is not None:
        raise plan.refusal


def _print_ended(ended: "SuiteOutcome", then: str, *, as_json: bool) -> None:
    """Print how a suite has ended, and what to do then."""
    if as_json:
        print_json(ended.rows())
        return
    print_tables(ended.tables())
    print_lines(f"unequal: {sentence}" for sentence in ended.inequalities())
    print_lines([f"next: {then}"])


def _report(place: Path) -> str:
    """The command that reports on a suite here; a page with charts needs packages."""
    if is_there("report"):
        return f"schemabank report {place} --out {place}/report"
    return f"schemabank report {place} (for a page with charts: {install_command('report')})"
