"""A folder of runs: what is compared, where each run stands, and what is left out and why."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.config.methods import METHODS
from schemabank.report.reading.settings import Config, label_of, read_config, settings_of
from schemabank.runs.folder import COST, FAILURE, PARTIAL, RESULT, SUITE
from schemabank.runs.stored import read_cost, read_result, read_suite

UNFINISHED = re.compile(r"\.unfinished-(\d+)$")
KEPT = re.compile(r"^\.(.+)\.partial$")  # its training is over, and its evaluation failed
MOST_REASONS = 3  # that one sentence names
UNCOMPARED = ("seed", "arm", "preset", "engine")  # settings that make no setting of an arm


@dataclass(frozen=True)
class ReportedRun:
    """A finished run and its place in the comparison.

    Attributes:
        run_id: name of its folder.
        arm: what it is called in the comparison.
        seed: its seed.
        setting: values of what varies beside arm and seed, as text; may be empty.
        folder: where it is.
        result: its ``result.json``.
    """

    run_id: str
    arm: str
    seed: int
    setting: str
    folder: Path
    result: Mapping[str, Any]

    @property
    def trained(self) -> bool:
        """Whether anything was trained."""
        return METHODS[self.result["arm"]].trains

    @cached_property
    def cost(self) -> Mapping[str, Any] | None:
        """Its ``cost.json``; ``None`` where there is none."""
        path = self.folder / COST
        return read_cost(path) if path.exists() else None

    @property
    def config(self) -> Config:
        """Its settings without the seed; runs that differ in the seed alone share one object."""
        return read_config(self.folder)


@dataclass(frozen=True)
class Left:
    """A run that is not compared, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class RunSet:
    """All that a folder of runs holds.

    Attributes:
        name: of the folder.
        names: dotted names of what varies beside arm and seed.
        score: name of the score that runs are compared by.
        split: that they were scored on.
        runs: that are compared.
        contrast: treatment and control, where they were declared before the runs.
        margin: in points, declared with the contrast; ``None`` without one.
        group: part of the split, declared with it; ``None`` for the first.
        setting: declared with it, as the runs' own are written; ``None`` for the mean over all.
        tuning: how learning rates were chosen, from ``suite.json``.
        failed: runs that failed and were not run again.
        failed_trials: likewise, of the search for learning rates.
        excluded: finished runs that cannot be compared with the others.
        unfinished: runs of the suite that are yet to come.
    """

    name: str
    names: tuple[str, ...]
    score: str
    split: str
    runs: tuple[ReportedRun, ...]
    contrast: tuple[str, str] | None
    tuning: Mapping[str, Any] | None
    failed: tuple[Left, ...] = ()
    failed_trials: tuple[Left, ...] = ()
    excluded: tuple[Left, ...] = ()
    unfinished: tuple[str, ...] = ()
    margin: float | None = None
    group: str | None = None
    setting: str | None = None

    @property
    def digest(self) -> str:
        """Of the runs' ids and results."""
        found = hashlib.sha256()
        for run in self.runs:
            found.update(json.dumps([run.run_id, run.result], sort_keys=True).encode())
        return found.hexdigest()

    @property
    def setting_name(self) -> str:
        """What a setting of an arm is called; empty where nothing varies."""
        return self.names[0] if len(self.names) == 1 else "setting" if self.names else ""

    @property
    def groups(self) -> list[str]:
        """Parts of the split that all runs were scored on, in their order."""
        found = [list(run.result["groups"]) for run in self.runs]
        return [name for name in found[0] if all(name in own for own in found)]

    def has_declared(self, arms: tuple[str, str]) -> bool:
        """Whether treatment and control are those of the declared contrast.

        Its margin, group and setting hold for no other: nothing was declared for that one.
        """
        return self.contrast == arms

    def arms(self, *, trained: bool) -> list[str]:
        """Names of arms that train something, or of those that do not."""
        return list(dict.fromkeys(run.arm for run in self.runs if run.trained == trained))

    def by_place(self, *, untrained: bool = False) -> dict[tuple[str, str], list[ReportedRun]]:
        """Return the trained runs, or all, by arm and setting."""
        found: dict[tuple[str, str], list[ReportedRun]] = {}
        for run in self.runs:
            if run.trained or untrained:
                found.setdefault((run.arm, run.setting), []).append(run)
        return found


@dataclass(frozen=True)
class _ListedRun:
    """A run of a suite or a folder, with the settings that set it apart from others of its arm."""

    run_id: str
    arm: str
    seed: int
    settings: Mapping[str, object] = field(default_factory=dict)


def read_runs(path: Path) -> RunSet:
    """Read a suite's folder, or any folder that runs lie in.

    Raises:
        InputError: no finished run is there, or a file of one is malformed.
    """
    if (path / RESULT).exists():
        raise InputError(
            f"{str(path)!r} is a single run: allowed is a folder of runs or a CSV, name the folder "
            "above it"
        )
    manifest = read_suite(path / SUITE) if (path / SUITE).exists() else None
    if manifest is None:
        listed = _with_settings(path, _scanned(path))
    else:
        columns = ("run_id", "arm", "seed", "settings")
        listed = [_ListedRun(*(row[name] for name in columns)) for row in manifest["runs"]]
    names = list(dict.fromkeys(name for run in listed for name in run.settings))
    known = {run.run_id for run in listed}
    runs = [found for run in listed if (found := _finished(path, run, names)) is not None]
    tuning: Any = manifest and manifest.get("tuning")
    failed = _read_failures(path)
    if not runs:
        lost = [failed[name].reason for name in failed if name in known or not known]
        raise InputError(_nothing_to_report(path, lost, searched=bool(tuning)))
    compared, excluded = _comparable(_base_once(runs))
    declared: Any = manifest and manifest["contrast"]
    tuned = {row["run_id"] for row in tuning["runs"]} if tuning else set()
    missing = known - {run.run_id for run in runs} - failed.keys()
    return RunSet(
        name=path.resolve().name,
        names=tuple(names),
        score=compared[0].result["scores"][0],
        split=str(compared[0].result["split"]),
        runs=tuple(compared),
        contrast=(declared["treatment"], declared["control"]) if declared else None,
        tuning=tuning,
        failed=tuple(left for run, left in failed.items() if run not in tuned - known),
        failed_trials=tuple(left for run, left in failed.items() if run in tuned - known),
        excluded=(*excluded, *_strangers(path, known | tuned)),
        unfinished=tuple(sorted(missing)),
        **_declared_with(declared or {}, names),
    )


def _declared_with(declared: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What a contrast was declared with, as the attributes of a set of runs."""
    setting = declared.get("setting")
    return {
        "margin": declared.get("margin"),
        "group": declared.get("group"),
        "setting": None if setting is None else label_of(names, setting),
    }


def _nothing_to_report(path: Path, failed: Sequence[str], *, searched: bool) -> str:
    """Why a folder has nothing to compare.

    Args:
        path: of the folder.
        failed: the reasons of its failed runs.
        searched: whether learning rates were searched for.
    """
    if failed:
        counted = [f"{n} x {reason}" for reason, n in Counter(failed).most_common(MOST_REASONS)]
        more = len(set(failed)) - len(counted)
        also = f"; and {more} more reasons" if more else ""
        return (
            f"{str(path)!r} holds no finished run, since {len(failed)} failed "
            f"({'; '.join(counted)}{also}): mend the cause, and run the same command again"
        )
    if searched:
        return (
            f"{str(path)!r} holds a search for learning rates and no final run: allowed are final "
            "runs, run the suite without --tune-only, or see the search by schemabank suite FILE "
            "--tune-only"
        )
    return (
        f"{str(path)!r} holds no finished run: allowed is a folder of runs or a CSV, run "
        "schemabank train or suite first"
    )


def _scanned(path: Path) -> list[_ListedRun]:
    """The runs that lie in a folder; a base model with shots is an arm of its own."""
    places = []
    for result in _results(path):
        found = read_result(result)
        shots = found["few_shot"]
        arm = found["arm"] + (f", {shots} shots" if shots else "")
        places.append(_ListedRun(result.parent.name, arm, found["seed"]))
    return places


def _results(path: Path) -> list[Path]:
    """The results of finished runs, by the names of their folders."""
    return [
        result
        for result in sorted(path.glob(f"*/{RESULT}"))
        if not (UNFINISHED.search(result.parent.name) or result.parent.name.startswith("."))
    ]


def _with_settings(path: Path, runs: Sequence[_ListedRun]) -> list[_ListedRun]:
    """Add the settings that set runs of the same arm apart, beside their seeds."""
    configs = [read_config(path / run.run_id) for run in runs]
    by_arm: dict[str, dict[int, Config]] = {}
    for run, config in zip(runs, configs, strict=True):
        by_arm.setdefault(run.arm, {})[id(config)] = config  # runs that differ in seeds share one
    names = dict.fromkeys(name for own in by_arm.values() for name in _varying(own.values()))
    found = []
    for run, config in zip(runs, configs, strict=True):
        settings = settings_of(config)
        found.append(replace(run, settings={name: settings.get(name) for name in names}))
    return found


def _varying(configs: Iterable[Config]) -> list[str]:
    settings = [settings_of(config) for config in configs]
    names = dict.fromkeys(name for own in settings for name in own)
    return [
        name
        for name in names
        if name.partition(".")[0] not in UNCOMPARED
        and any(own.get(name) != settings[0].get(name) for own in settings)
    ]


def _finished(path: Path, run: _ListedRun, names: Sequence[str]) -> ReportedRun | None:
    folder = path / run.run_id
    if not (folder / RESULT).exists():
        return None
    result = read_result(folder / RESULT)
    _check_trained(result, folder / RESULT)
    setting = label_of(names, run.settings)
    return ReportedRun(run.run_id, run.arm, run.seed, setting, folder, result)


def label(runs: RunSet, settings: Mapping[str, object]) -> str:
    """Return a place's settings as the runs' own are written."""
    return label_of(runs.names, settings)


def _check_trained(result: Mapping[str, Any], path: Path) -> None:
    """Refuse the result of an evaluation alone in place of a trained run's."""
    if METHODS[result["arm"]].trains and result["training"] is None:
        raise InputError(
            f"{str(path)!r} lacks a usable training (it is None, as in an evaluation): allowed are "
            "runs, move the folder away"
        )


def _base_once(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """Keep one run of a base model a setting, and let a single one stand for all settings.

    Nothing of it is drawn from a seed, so that others of its seeds have the same score.
    """
    settings: dict[str, set[str]] = {}
    for run in runs:
        if not run.trained:
            settings.setdefault(run.arm, set()).add(run.setting)
    found: dict[tuple[str, str], ReportedRun] = {}
    for run in runs:
        if run.trained:
            found[run.run_id, "trained"] = run
        else:
            setting = run.setting if len(settings[run.arm]) > 1 else ""
            found.setdefault((run.arm, setting), replace(run, setting=setting))
    return list(found.values())


def _comparable(runs: Sequence[ReportedRun]) -> tuple[list[ReportedRun], list[Left]]:
    """Keep the runs of the most frequent task, metric, split and groups; the first of equals."""
    kinds = [_kind(run.result) for run in runs]
    most, _ = Counter(kinds).most_common(1)[0]
    if most[1] in {"perplexity", "none"}:
        raise InputError(
            f"the runs' metric is {most[1]!r}, allowed are metrics whose scores are shares from 0 "
            "to 1: compare others with schemabank eval"
        )
    kept, left = [], []
    for run, kind in zip(runs, kinds, strict=True):
        if kind == most:
            kept.append(run)
        else:
            said = f"scored on {' '.join(kind)}, the others on {' '.join(most)}"
            left.append(Left(run.run_id, said))
    return kept, left


def _kind(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What results must have in common to be compared."""
    groups = "/".join(result["groups"])
    return str(result["task"]), str(result["metric"]), str(result["split"]), groups


def _read_failures(path: Path) -> dict[str, Left]:
    """Runs that failed and have no finished folder, with the last reason."""
    found = {}
    aside = sorted(path.glob(f"*.unfinished-*/{FAILURE}"), key=_number_aside)
    kept = sorted(path.glob(f"{PARTIAL.format('*')}/{FAILURE}"))
    for file in (*aside, *kept):  # the latest come last
        name = KEPT.sub(r"\1", UNFINISHED.sub("", file.parent.name))
        if not (path / name / RESULT).exists():
            found[name] = Left(name, _reason_in(file))
    return found


def _reason_in(file: Path) -> str:
    """Why a run failed; of a file that is damaged, only that: the run has failed all the same."""
    try:
        said = read_json(file).get("failure")
        if isinstance(said, str) and said and said.encode():
            return said
        wrong = f"{str(file)!r} names none"
    except (InputError, UnicodeEncodeError) as error:  # half a character, which no page can show
        wrong = str(error) if isinstance(error, InputError) else f"{str(file)!r} is no text"
    return f"its reason cannot be read ({wrong})"


def _number_aside(file: Path) -> tuple[int, str]:
    """The number of a folder that was put aside, in which the file lies, and its name."""
    number = UNFINISHED.search(file.parent.name)
    return int(number[1]) if number else 0, file.parent.name


def _strangers(path: Path, known: set[str]) -> Iterator[Left]:
    for result in _results(path):
        if result.parent.name not in known:
            yield Left(result.parent.name, "not a run of this suite")
