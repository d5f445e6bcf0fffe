"""A suite: named arms, seeds and a grid of settings, and the runs that they make."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from schemabank.basesettings import Settings
from schemabank.config import RunConfig
from schemabank.configfile import (
    Location,
    Source,
    Tree,
    apply_override,
    assign,
    merge,
    run_id,
    validated,
    with_preset,
)
from schemabank.errors import InputError
from schemabank.experiment import plan_all, resolve_device, resolved, run_all
from schemabank.progress import Reporter
from schemabank.rundir import check_available, is_finished, read_json, write_json
from schemabank.runner import Outcome
from schemabank.stats import summarise_arm
from schemabank.table import PlainTable

ARM, SEED = "arm", "seed"
SUITE = "suite.json"
Point = Mapping[str, object]
NonEmpty = Annotated[tuple[Any, ...], Field(min_length=1)]


class Contrast(Settings):
    """The comparison that a suite is made for, declared before it runs."""

    treatment: str
    """Name of the arm that is claimed to be better."""
    control: str
    """Name of the arm that it is compared with."""


class SuiteConfig(Settings):
    """A suite file: what is common to all runs, and in what they differ."""

    defaults: Tree = Field(default_factory=dict)
    """Settings of all runs, as a configuration has them."""
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """By name, settings of an arm on top of the defaults; its arm is its name if it says none."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (42,)
    """Seeds of every arm."""
    grid: dict[str, NonEmpty] = Field(default_factory=dict)
    """By dotted name, values of a setting; every arm has a run for every combination."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Runs to leave out: those that agree with all of an entry's arm, seed and grid settings."""
    contrast: Contrast | None = None
    """The comparison that is declared in advance."""


@dataclass(frozen=True)
class SuiteRun:
    """A run and its place in the suite.

    Attributes:
        arm: name of its arm in the suite.
        seed: its seed.
        point: its values of the grid's settings.
        config: all its settings.
    """

    arm: str
    seed: int
    point: Point
    config: RunConfig

    @property
    def place(self) -> dict[str, object]:
        """Its place as one mapping."""
        return {ARM: self.arm, SEED: self.seed, **self.point}


@dataclass(frozen=True)
class Suite:
    """Runs that are to be compared.

    Attributes:
        contrast: what is compared first of all, as declared in advance.
        runs: all of them, their settings resolved for this machine.
    """

    contrast: Contrast | None
    runs: tuple[SuiteRun, ...]

    def rows(self) -> list[dict[str, object]]:
        """Every run's id and place."""
        return [
            {"run_id": run_id(r.config), ARM: r.arm, SEED: r.seed, "settings": dict(r.point)}
            for r in self.runs
        ]


def load_suite(path: Path, overrides: Iterable[str] = ()) -> Suite:
    """Read a suite file and make its runs.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings for every run, on top of all others.

    Raises:
        InputError: a setting is unknown or out of range, a grid names what an arm or the seeds set
            already, an exclusion matches nothing, or two places hold the same run.
    """
    source = Source(path)
    suite = source.validate(source.tree, SuiteConfig)
    _check_names(suite, source)
    places = [
        (arm, seed, dict(zip(suite.grid, values, strict=True)))
        for arm in suite.arms
        for values in product(*suite.grid.values())
        for seed in suite.seeds
    ]
    changes = list(overrides)
    runs = tuple(
        SuiteRun(*place, _config(suite, place, source, changes))
        for place in _kept(places, suite, source)
    )
    if not runs:
        raise InputError(
            f"{source.at(('exclude',))}: exclude leaves 0 of {len(places)} runs, allowed is at "
            "least 1: exclude less"
        )
    device = resolve_device(runs[0].config.engine.device)
    configs = resolved([run.config for run in runs], device)
    whole = [replace(run, config=c) for run, c in zip(runs, configs, strict=True)]
    return Suite(suite.contrast, _distinct(whole, path))


def run_suite(suite: Suite, out: Path, reporter: Reporter) -> list[Outcome]:
    """Train and evaluate what is not finished yet.

    Args:
        suite: the suite.
        out: folder of the runs, one folder a run inside, and of ``suite.json``.
        reporter: where progress goes.

    Returns:
        One outcome a run, in their order.

    Raises:
        InputError: ``out`` belongs to another suite, or something in the settings cannot be had;
            nothing was trained.
    """
    configs = [run.config for run in suite.runs]
    device = resolve_device(configs[0].engine.device)
    _claim(out, suite)
    return run_all(configs, out, reporter, device=device)


def plan_suite(suite: Suite, out: Path, reporter: Reporter) -> list[PlainTable]:
    """Say what running a suite would mean: its arms, and its cohorts with their expected time.

    Where the model or the data cannot be had, the cohorts are left out and the reason is noted.
    """
    arms = dict.fromkeys(run.arm for run in suite.runs)
    rows = []
    for arm in arms:
        own = [run for run in suite.runs if run.arm == arm]
        seeds = len({run.seed for run in own})
        rows.append(
            [
                arm,
                str(len(own)),
                str(seeds),
                str(sum(is_finished(out / run_id(run.config)) for run in own)),
            ]
        )
    tables: list[PlainTable] = [
        (f"{len(suite.runs)} runs in {str(out)!r}", ["arm", "runs", "seeds", "finished"], rows)
    ]
    configs = [run.config for run in suite.runs]
    try:
        plans = plan_all(configs, reporter, device=resolve_device(configs[0].engine.device))
    except InputError as error:
        reporter.note(f"no cohorts and no expected time: {error}")
        return tables
    cells = [
        [str(n), f"{len(p.runs)}", str(p.slots), f"{p.num_steps:,}", f"{p.time_s:,.0f} s"]
        for n, p in enumerate(plans, start=1)
    ]
    head = ["cohort", "runs", "at once", "steps", "training, about"]
    return [*tables, ("cohorts, as if nothing were finished", head, cells)]


def result_tables(suite: Suite, outcomes: Sequence[Outcome]) -> list[PlainTable]:
    """Mean and spread over seeds of the first score, one table a group of items."""
    results = [outcome.result for outcome in outcomes]
    groups = dict.fromkeys(g for r in results if r is not None for g in _groups(r))
    return [_result_table(suite, results, group) for group in groups]


def _result_table(
    suite: Suite, results: Sequence[Mapping[str, Any] | None], group: str
) -> PlainTable:
    names = list(dict.fromkeys(name for run in suite.runs for name in run.point))
    scores: dict[tuple[str, ...], list[float]] = {}
    metric = ""
    for run, result in zip(suite.runs, results, strict=True):
        key = (run.arm, *(str(run.point.get(name, "")) for name in names))
        scores.setdefault(key, [])
        if result is not None and group in _groups(result) and result["scores"]:
            metric = result["scores"][0]
            scores[key].append(_groups(result)[group][metric])
    rows = [[*key, str(len(found)), *_spread(found)] for key, found in scores.items()]
    head = ["arm", *names, "seeds", "mean", "sd", "95 % over seeds"]
    return f"{metric}, {group}", head, rows


def _spread(scores: Sequence[float]) -> list[str]:
    if not scores:
        return ["", "", ""]
    found = summarise_arm(scores)
    sd = "" if found.sd is None else f"{found.sd:.4f}"
    ends = "" if found.interval is None else f"{found.interval[0]:.4f} to {found.interval[1]:.4f}"
    return [f"{found.mean:.4f}", sd, ends]


def _groups(result: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    return dict(result["groups"])


def _claim(out: Path, suite: Suite) -> None:
    """Write which run is what into the suite's folder; a suite may grow, but not forget a run."""
    path, rows = out / SUITE, suite.rows()
    contrast = None if suite.contrast is None else suite.contrast.model_dump()
    if path.exists():
        _check_grows(out, read_json(path), rows, contrast)
    check_available(path)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{SUITE}.{secrets.token_hex(4)}.partial"
    write_json(partial, {"contrast": contrast, "runs": rows})
    partial.replace(path)


def _check_grows(
    out: Path,
    known: Mapping[str, Any],
    rows: Sequence[Mapping[str, object]],
    contrast: Mapping[str, str] | None,
) -> None:
    lost = [row for row in known["runs"] if row not in rows]
    if lost:
        raise InputError(
            f"{str(out)!r} holds a suite with the run {lost[0]}, which this one has not: "
            "allowed is the same suite or a larger one, choose another --out"
        )
    if known["contrast"] is not None and known["contrast"] != contrast:
        raise InputError(
            f"contrast is {contrast}, but the suite in {str(out)!r} declared {known['contrast']}: "
            "allowed is what was declared before the runs, restore it or choose another --out"
        )


def _check_names(suite: SuiteConfig, source: Source) -> None:
    for name in (SEED, ARM):
        if name in suite.grid:
            raise InputError(
                f"{source.at(('grid', name))}: grid names {name!r}, allowed are other settings: "
                f"use {name}s"
            )
    if suite.contrast is not None:
        for role in ("treatment", "control"):
            name = getattr(suite.contrast, role)
            if name not in suite.arms:
                raise InputError(
                    f"{source.at(('contrast', role))}: contrast.{role} is {name!r}, allowed are "
                    f"the arms {', '.join(suite.arms)}: name one of them"
                )


def _kept(
    places: Sequence[tuple[str, int, dict[str, object]]], suite: SuiteConfig, source: Source
) -> Iterator[tuple[str, int, dict[str, object]]]:
    """Leave out what is excluded; an exclusion that matches nothing is a slip."""
    used = [False] * len(suite.exclude)
    for arm, seed, point in places:
        own = {ARM: arm, SEED: seed, **point}
        matches = [all(own.get(k) == v for k, v in entry.items()) for entry in suite.exclude]
        used = [a or b for a, b in zip(used, matches, strict=True)]
        if not any(matches):
            yield arm, seed, point
    for index, entry in enumerate(suite.exclude):
        if not used[index]:
            raise InputError(
                f"{source.at(('exclude', index))}: {entry} matches no run, allowed are arm, seed "
                f"and the grid's {', '.join(suite.grid) or 'settings'} with values that the suite "
                "has: change or remove it"
            )


def _config(
    suite: SuiteConfig,
    place: tuple[str, int, Point],
    source: Source,
    overrides: Sequence[str],
) -> RunConfig:
    """Put a run's settings together: preset, defaults, arm, seed, grid, ``--set``."""
    arm, seed, point = place

    def at(location: Location) -> str:
        """Where a run's setting was made, the last word first."""
        said = ".".join(map(str, location))
        for name in point:
            if said == name or said.startswith(f"{name}."):
                return source.at(("grid", name))
        own, common = ("arms", arm, *location), ("defaults", *location)
        return source.at(common if own not in source.lines and common in source.lines else own)

    tree = with_preset(merge(suite.defaults, suite.arms[arm]), at)
    tree = merge({ARM: arm}, tree) | {SEED: seed}
    for name, value in point.items():
        assign(tree, name.split("."), value, f"{source.at(('grid', name))}: {name}")
    for text in overrides:
        source.overridden.add(apply_override(tree, text))
    return validated(tree, RunConfig, at)


def _distinct(runs: Sequence[SuiteRun], path: Path) -> tuple[SuiteRun, ...]:
    """Refuse two places with the same settings; the arm ``base`` needs one seed and no training.

    A base model has nothing to train, so of its places those that differ in such settings alone
    are one.
    """
    found: dict[str, SuiteRun] = {}
    for run in runs:
        first = found.setdefault(run_id(_anywhere(run.config)), run)
        if first is not run and run.config.arm != "base":
            raise InputError(
                f"{path}: the runs at {first.place} and {run.place} have the same settings, "
                "allowed are runs that differ: change an arm or the grid"
            )
    return tuple(found.values())


def _anywhere(config: RunConfig) -> RunConfig:
    """The settings that make runs of the arm ``base`` the same: nothing is drawn from a seed."""
    return config.model_copy(update={"seed": 0}) if config.arm == "base" else config
