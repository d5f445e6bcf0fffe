"""A suite's file: named arms, seeds and a grid of settings, and the runs that they make.

This module makes all checks that need only the file; none depends on the machine.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from schemabank.common.errors import InputError
from schemabank.common.plainyaml import Location
from schemabank.config.base import Int, Points, PositiveInt, Rate, Seed, Settings
from schemabank.config.file import run_id, with_preset
from schemabank.config.naming import dotted
from schemabank.config.overrides import Tree, apply_override, assign
from schemabank.config.settings import RunConfig
from schemabank.config.settingsfile import SettingsFile, merge, validated
from schemabank.runs.effects import Idle, idle_in_some_arms, idle_settings, sentences
from schemabank.tasks.catalog import split_of

ARM, SEED, PRESET = "arm", "seed", "preset"
SEARCH_SPLIT = "validation"
LEFT_OUT_BY_NULL = ("arms", "grid")  # of the file that a suite extends
Point = Mapping[str, object]
Place = tuple[str, int, Point]  # arm, seed, values of the grid
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
NonEmpty = Annotated[tuple[Any, ...], Field(min_length=1)]


class ContrastSettings(Settings):
    """The comparison that a suite is made for, declared before it runs."""

    treatment: str
    """Name of the arm that is claimed to be better."""
    control: str
    """Name of the arm that it is compared with."""
    margin: Points | None = None
    """Largest difference in percentage points that does not matter, for verdicts of equivalence."""
    group: str | None = None
    """Part of the split that is compared, such as ``seen``; without it, the first."""
    setting: dict[str, Any] | None = None
    """Point of the grid that the verdict rests on; without it, each seed's mean over all points."""


class TuneSettings(Settings):
    """The search for every arm's learning rate on the validation split, before the final runs."""

    factors: Annotated[tuple[Rate, ...], Field(min_length=2)] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """All learning rates of a run are multiplied by each of these in turn."""
    seeds: Seeds = (1001, 1002)
    """Seeds of the search, none of them a seed of the suite."""
    extend: Int = 2
    """How often the factors may be extended, for all arms, if the best of any is at an end."""
    limit: PositiveInt | None = None
    """Score the first so many items of every group only; without it, eval.limit counts."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        for name in ("factors", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(
                    f"{name} are {', '.join(map(str, values))}, allowed are distinct ones: name "
                    "each once"
                )
        return self


class SuiteConfig(Settings):
    """A suite file: what is common to all runs, and in what they differ."""

    defaults: Tree = Field(default_factory=dict)
    """Settings of all runs, as a configuration has them."""
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """By name, settings of an arm on top of the defaults; its arm is its name if it says none."""
    seeds: Seeds = (42,)
    """Seeds of every arm."""
    grid: dict[str, NonEmpty] = Field(default_factory=dict)
    """By dotted name, values of a setting; every arm has a run for every combination."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Runs to leave out: those that agree with all of an entry's arm, seed and grid settings."""
    contrast: ContrastSettings | None = None
    """The comparison that is declared in advance."""
    tune: TuneSettings | None = None
    """How learning rates are chosen; without it, the settings' own are used."""


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

    def row(self) -> dict[str, object]:
        """Its id and place, as ``suite.json`` has them."""
        return {
            "run_id": run_id(self.config),
            ARM: self.arm,
            SEED: self.seed,
            "settings": dict(self.point),
        }

    @property
    def title(self) -> str:
        """Its place in words; settings go by the last part of their names."""
        settings = [f"{name.rpartition('.')[2]}={value}" for name, value in self.point.items()]
        return ", ".join([f"{self.arm} seed {self.seed}", *settings])


@dataclass(frozen=True)
class Suite:
    """Runs that are to be compared.

    Attributes:
        contrast: what is compared first of all, as declared in advance.
        runs: one for every arm, seed and point of the grid that is not excluded; in a tuned suite,
            before the search, at the learning rates that the factors multiply.
        tune: how learning rates are chosen, or ``None``.
        notes: settings of the file that change no run, a sentence each.
    """

    contrast: ContrastSettings | None
    runs: tuple[SuiteRun, ...]
    tune: TuneSettings | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, object]]:
        """Every run's id and place."""
        return [run.row() for run in self.runs]


def read_suite_file(path: Path, overrides: Iterable[str] = ()) -> Suite:
    """Read a suite's file and put the settings of its runs together, as they are on any machine.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` settings for every run, on top of all others.

    Raises:
        InputError: a setting is unknown or out of range, one in an arm changes none of its runs, a
            grid names what an arm or the seeds set already, an exclusion matches nothing, the
            search for learning rates has a seed of the suite, or a tuned suite scores its final
            runs on the split that it is tuned on.
    """
    source = SettingsFile(path, may_extend=True)
    _check_top_level(source)
    _leave_out(source)
    suite = source.validate(source.tree, SuiteConfig)
    _check_names(suite, source)
    _check_tuning(suite, source)
    changes = list(overrides)
    _check_overrides(changes)
    places = _kept_places(suite, source)
    runs = tuple(SuiteRun(*place, _run_config(suite, place, source, changes)) for place in places)
    contrast = _with_point(suite.contrast, runs, source.at(("contrast", "setting")))
    if suite.tune is not None:
        _check_final_split(runs)
    of_arms = list(_idle_in_arms(suite, runs, source))
    names = [*dotted(suite.defaults), *suite.grid, *(c.partition("=")[0].strip() for c in changes)]
    idle = idle_settings(names, [run.config for run in runs])
    by_arm = {arm: [run.config for run in runs if run.arm == arm] for arm in suite.arms}
    in_some = idle_in_some_arms(names, {arm: own for arm, own in by_arm.items() if own})
    return Suite(contrast, runs, suite.tune, tuple(sentences([*idle, *in_some, *of_arms])))


def _check_top_level(source: SettingsFile) -> None:
    """Refuse what belongs into a configuration, or further inside."""
    for key in source.tree:
        if key in RunConfig.model_fields:
            place = {ARM: "arms", SEED: "seeds"}.get(key, f"defaults.{key}")
            raise InputError(
                f"{source.at((key,))}: unknown key {key!r}, did you mean {place!r}? (a suite has "
                f"{', '.join(SuiteConfig.model_fields)}; the command train takes configurations)"
            )


def _leave_out(source: SettingsFile) -> None:
    """Remove what the extended file has and this one sets to null.

    That may be a whole section, an arm, or a setting of the grid.
    """
    if source.base is None:
        return
    inherited = source.base.tree
    for section in SuiteConfig.model_fields:
        before, own = inherited.get(section), source.tree.get(section)
        if section in inherited and own is None:
            del source.tree[section]
        elif section in {"arms", "grid"} and isinstance(before, dict) and isinstance(own, dict):
            gone = [name for name in before if own[name] is None]
            source.tree[section] = {k: v for k, v in own.items() if k not in gone}


def _check_names(suite: SuiteConfig, source: SettingsFile) -> None:
    for location, settings in (
        (("defaults",), suite.defaults),
        *((("arms", arm), own) for arm, own in suite.arms.items()),
    ):
        if SEED in settings:
            raise InputError(
                f"{source.at((*location, SEED))}: {SEED} has no effect here, since every arm has "
                "the suite's seeds: use seeds"
            )
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


def _with_point(
    contrast: ContrastSettings | None, runs: Iterable[SuiteRun], at: str
) -> ContrastSettings | None:
    """Return a contrast with its point as the grid writes it.

    An arm that trains nothing may lack points: one run of it stands for all.

    Raises:
        InputError: it names a point that its arms do not both have.
    """
    if contrast is None or contrast.setting is None:
        return contrast
    arms = (contrast.treatment, contrast.control)
    trained = {run.arm for run in runs if run.config.trains}
    points = list({str(run.point): dict(run.point) for run in runs if run.point}.values())
    for arm in trained.intersection(arms):
        own = [dict(run.point) for run in runs if run.arm == arm]
        points = [point for point in points if point in own]
    found = next((point for point in points if point == contrast.setting), None)
    if found is None:
        listed = ", ".join(map(str, points))
        allowed = (
            f"allowed are the points that both arms have, {listed}: name one, or leave it out"
            if points
            else "but the arms have no point of a grid in common: leave it out"
        )
        raise InputError(f"{at}: contrast.setting is {contrast.setting}, {allowed}")
    return contrast.model_copy(update={"setting": found})


def _check_overrides(overrides: Iterable[str]) -> None:
    """Refuse a seed, arm or preset for all runs, which would contradict their places."""
    for text in overrides:
        name = text.partition("=")[0].strip()
        if name in {SEED, ARM}:
            raise InputError(
                f"--set {text!r}: a suite says itself which {name}s its runs have: change its "
                f"{name}s, or set something else"
            )
        if name == PRESET:
            raise InputError(
                f"--set {text!r}: a preset comes before all other settings, so --set cannot give "
                "it: change preset in the suite's defaults or in an arm"
            )


def _idle_in_arms(
    suite: SuiteConfig, runs: Sequence[SuiteRun], source: SettingsFile
) -> Iterator[Idle]:
    """Find settings of arms that have no effect.

    Details of a stage are often copied from one arm to the next, so that these are only told.

    Raises:
        InputError: any other setting of an arm changes none of its runs, though an arm's settings
            are what makes it differ from the other arms.
    """
    for arm, own in suite.arms.items():
        configs = [run.config for run in runs if run.arm == arm]
        for idle in idle_settings(dotted(own), configs) if configs else ():
            if idle.name.startswith("curriculum.") and not idle_settings(["curriculum"], configs):
                yield replace(idle, name=f"{idle.name} of the arm {arm!r}")
                continue
            place = source.at(("arms", arm, *idle.name.split(".")))
            raise InputError(
                f"{place}: {idle.name} has no effect in the arm {arm!r} ({idle.reason}): allowed "
                "in an arm are settings that change it, leave it out or move it to defaults"
            )


def _check_tuning(suite: SuiteConfig, source: SettingsFile) -> None:
    if suite.tune is None:
        return
    common = sorted(set(suite.tune.seeds) & set(suite.seeds))
    if common:
        raise InputError(
            f"{source.at(('tune', 'seeds'))}: tune.seeds names {common[0]}, a seed of the suite, "
            "allowed are others: no final run may have a say in the choice, take another seed"
        )


def _check_final_split(runs: Iterable[SuiteRun]) -> None:
    for run in runs:
        config = run.config
        if config.trains and split_of(config.task, config.eval.split) == SEARCH_SPLIT:
            raise InputError(
                f"eval.split of the arm {run.arm!r} is {SEARCH_SPLIT!r}, on which tune chooses the "
                "learning rates: allowed is test, set it or leave tune out"
            )


def _kept_places(suite: SuiteConfig, source: SettingsFile) -> list[Place]:
    """All places but the excluded ones; an exclusion that matches nothing is refused."""
    places: list[Place] = [
        (arm, seed, dict(zip(suite.grid, values, strict=True)))
        for arm in suite.arms
        for values in product(*suite.grid.values())
        for seed in suite.seeds
    ]
    owns = [{ARM: arm, SEED: seed, **point} for arm, seed, point in places]
    for index, entry in enumerate(suite.exclude):
        if not any(own | entry == own for own in owns):
            raise InputError(
                f"{source.at(('exclude', index))}: {entry} matches no run, allowed are arm, seed "
                f"and the grid's {', '.join(suite.grid) or 'settings'} with values that the suite "
                "has: change or remove it"
            )
    kept = [
        place
        for place, own in zip(places, owns, strict=True)
        if not any(own | entry == own for entry in suite.exclude)
    ]
    if not kept:
        raise InputError(
            f"{source.at(('exclude',))}: exclude leaves 0 of {len(places)} runs, allowed is at "
            "least 1: exclude less"
        )
    return kept


def _run_config(
    suite: SuiteConfig,
    place: Place,
    source: SettingsFile,
    overrides: Sequence[str],
) -> RunConfig:
    """Put a run's settings together: preset, defaults, arm, seed, grid, ``--set``."""
    arm, seed, point = place

    def at(location: Location) -> str:
        """Where in the file a run's setting comes from; later sources override earlier ones."""
        said = ".".join(map(str, location))
        for name in point:
            if said == name or said.startswith(f"{name}."):
                return source.at(("grid", name))
        own, common = ("arms", arm, *location), ("defaults", *location)
        return source.at(common if own not in source.places and common in source.places else own)

    tree = with_preset(merge(suite.defaults, suite.arms[arm]), at)
    tree = deepcopy(merge({ARM: arm}, tree) | {SEED: seed})  # sections are the preset's own
    for name, value in point.items():
        assign(tree, name.split("."), value, f"{source.at(('grid', name))}: {name}")
    for text in overrides:
        source.overridden.add(apply_override(tree, text))
    return validated(tree, RunConfig, at)
