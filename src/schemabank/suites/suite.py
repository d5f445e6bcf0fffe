"""A suite on this machine: its runs with their settings resolved, each of them once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.runs.loading import resolve_device, resolved
from schemabank.suites.file import (
    ARM,
    SEARCH_SPLIT,
    SEED,
    ContrastSettings,
    SuiteRun,
    TuneSettings,
    read_suite_file,
)


@dataclass(frozen=True)
class Suite:
    """Runs that are to be compared.

    Attributes:
        contrast: what is compared first of all, as declared in advance.
        runs: all of them, their settings resolved for this machine; of a tuned suite, at the
            learning rates that the factors multiply.
        tune: how learning rates are chosen, or ``None``.
        notes: settings of the file that change no run, a sentence each.
    """

    contrast: ContrastSettings | None
    runs: tuple[SuiteRun, ...]
    tune: TuneSettings | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, object]]:
        """Every run's id and place."""
        return [
            {"run_id": run_id(r.config), ARM: r.arm, SEED: r.seed, "settings": dict(r.point)}
            for r in self.runs
        ]


def load_suite(path: Path, overrides: Iterable[str] = ()) -> Suite:
    """Read a suite's file and resolve its runs for this machine.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings for every run, on top of all others.

    Raises:
        InputError: the file is refused, see :func:`read_suite_file`; two places hold the same run;
            or a tuned suite scores its final runs on the split that it is tuned on.
    """
    found = read_suite_file(path, overrides)
    configs = [run.config for run in found.runs]
    device = resolve_device(configs[0].engine.device)
    whole = [
        replace(run, config=config)
        for run, config in zip(found.runs, resolved(configs, device), strict=True)
    ]
    if found.config.tune is not None:
        _check_final_split(whole)
    return Suite(
        contrast=found.config.contrast,
        runs=_distinct(whole, path),
        tune=found.config.tune,
        notes=found.notes,
    )


def _check_final_split(runs: Iterable[SuiteRun]) -> None:
    for run in runs:
        if run.config.trains and run.config.eval.split == SEARCH_SPLIT:
            raise InputError(
                f"eval.split of the arm {run.arm!r} is {SEARCH_SPLIT!r}, on which tune chooses the "
                "learning rates: allowed is test, set it or leave tune out"
            )


def _distinct(runs: Sequence[SuiteRun], path: Path) -> tuple[SuiteRun, ...]:
    """Refuse two places with the same settings; the arm ``base`` needs one seed and no training.

    A base model has nothing to train, so of its places those that differ in such settings alone
    are one.
    """
    found: dict[str, SuiteRun] = {}
    for run in runs:
        first = found.setdefault(run_id(_anywhere(run.config)), run)
        if first is not run and run.config.trains:
            raise InputError(
                f"{path}: the runs at {first.place} and {run.place} have the same settings, "
                "allowed are runs that differ: change an arm or the grid"
            )
    return tuple(found.values())


def _anywhere(config: RunConfig) -> RunConfig:
    """The settings that make runs of the arm ``base`` the same: nothing is drawn from a seed."""
    return config if config.trains else config.model_copy(update={"seed": 0})
