"""A suite on this machine: its runs with their settings resolved, each of them once."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.runs.loading import resolve_device, resolved
from schemabank.suites.file import Suite, SuiteRun, read_suite_file


def load_suite(path: Path, overrides: Iterable[str] = ()) -> Suite:
    """Read a suite's file and resolve its runs for this machine.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings for every run, on top of all others.

    Raises:
        InputError: the file is refused, see :func:`read_suite_file`, or two places hold the same
            run.
    """
    return on_this_machine(read_suite_file(path, overrides), path)


def on_this_machine(found: Suite, path: Path) -> Suite:
    """Resolve the runs of a suite that was read from a file.

    Raises:
        InputError: two places hold the same run.
    """
    configs = [run.config for run in found.runs]
    device = resolve_device(configs[0].engine.device)
    whole = [
        replace(run, config=config)
        for run, config in zip(found.runs, resolved(configs, device), strict=True)
    ]
    return replace(found, runs=_without_duplicates(whole, path))


def _without_duplicates(runs: Sequence[SuiteRun], path: Path) -> tuple[SuiteRun, ...]:
    """Refuse two places with the same settings.

    Places of the arm ``base`` that differ only in their seed or in settings of training are one
    run, since a base model trains nothing.
    """
    found: dict[str, SuiteRun] = {}
    for run in runs:
        first = found.setdefault(run_id(_without_seed_of_base(run.config)), run)
        if first is not run and run.config.trains:
            raise InputError(
                f"{path}: the runs at {first.place} and {run.place} have the same settings, "
                "allowed are runs that differ: change an arm or the grid"
            )
    return tuple(found.values())


def _without_seed_of_base(config: RunConfig) -> RunConfig:
    """A run's settings; those of the arm ``base`` without its seed, from which it draws nothing."""
    return config if config.trains else config.model_copy(update={"seed": 0})
