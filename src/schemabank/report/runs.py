"""A folder of runs: what is compared, where each run stands, and what is left out and why."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from schemabank.errors import InputError
from schemabank.rundir import CONFIG, RESULT, SUITE, read_json

SEED_LINE = re.compile(r"^seed: \d+\n", re.MULTILINE)
FAILURE = "failure.json"
UNFINISHED = re.compile(r"\.unfinished-\d+$")
UNCOMPARED = ("seed", "arm", "preset", "engine")  # settings that make no setting of an arm

Config = Mapping[str, Any]


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
        return bool(self.result["arm"] != "base")

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
        setting: dotted names of what varies beside arm and seed.
        score: name of the score that runs are compared by.
        split: that they were scored on.
        runs: that are compared.
        contrast: treatment and control, where they were declared before the runs.
        tuning: how learning rates were chosen, from ``suite.json``.
        failed: runs that failed and were not run again.
        excluded: finished runs that cannot be compared with the others.
        unfinished: runs of the suite that are yet to come.
    """

    name: str
    setting: str
    score: str
    split: str
    runs: tuple[ReportedRun, ...]
    contrast: tuple[str, str] | None
    tuning: Mapping[str, Any] | None
    failed: tuple[Left, ...] = ()
    excluded: tuple[Left, ...] = ()
    unfinished: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of the runs' ids; an id is a hash of all settings."""
        return hashlib.sha256("\n".join(run.run_id for run in self.runs).encode()).hexdigest()

    @property
    def groups(self) -> list[str]:
        """Parts of the split that all runs were scored on, in their order."""
        found = [list(run.result["groups"]) for run in self.runs]
        return [name for name in found[0] if all(name in own for own in found)]

    def arms(self, *, trained: bool) -> list[str]:
        """Names of arms that train something, or of those that do not."""
        return list(dict.fromkeys(run.arm for run in self.runs if run.trained == trained))

    def at(self) -> dict[tuple[str, str], list[ReportedRun]]:
        """Return the trained runs by arm and setting."""
        found: dict[tuple[str, str], list[ReportedRun]] = {}
        for run in self.runs:
            if run.trained:
                found.setdefault((run.arm, run.setting), []).append(run)
        return found


@dataclass(frozen=True)
class _Place:
    """Where a run stands, before anything of it is read."""

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
    manifest = read_json(path / SUITE) if (path / SUITE).exists() else None
    places = _scanned(path) if manifest is None else list(_listed(manifest))
    names = [] if manifest is None else list(dict.fromkeys(n for p in places for n in p.settings))
    if manifest is None:
        names, places = _with_settings(path, places)
    known = {place.run_id for place in places}
    runs = [run for place in places if (run := _finished(path, place, names)) is not None]
    if not runs:
        raise InputError(
            f"{str(path)!r} holds no finished run: allowed is a folder of runs or a CSV, run "
            "schemabank train or suite first"
        )
    compared, excluded = _comparable(_one_setting_of_base(runs))
    tuning: Any = None if manifest is None else manifest.get("tuning")
    tuned = {row["run_id"] for row in tuning["runs"]} if tuning else set()
    failed = tuple(_failed(path, known | tuned))
    missing = known - {run.run_id for run in runs} - {left.run for left in failed}
    return RunSet(
        name=path.resolve().name,
        setting=", ".join(names),
        score=compared[0].result["scores"][0],
        split=str(compared[0].result["split"]),
        runs=tuple(compared),
        contrast=_declared(manifest),
        tuning=tuning,
        failed=failed,
        excluded=(*excluded, *_strangers(path, known | tuned)),
        unfinished=tuple(sorted(missing)),
    )


def read_config(folder: Path) -> Config:
    """Return a run's settings without its seed.

    Raises:
        InputError: they cannot be read.
    """
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {str(folder / CONFIG)!r} ({error}): restore it, or move the run's folder "
            "away"
        ) from error
    return _parsed(SEED_LINE.sub("", text))


@cache
def _parsed(text: str) -> Config:
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def flat(config: Config, prefix: str = "") -> dict[str, object]:
    """Return settings by their dotted names; a stage of the curriculum by its own name."""
    found: dict[str, object] = {}
    for key, value in config.items():
        inner = value
        if prefix + key == "curriculum" and isinstance(value, list):
            inner = {stage["name"]: stage for stage in value}
        if isinstance(inner, dict):
            found |= flat(inner, f"{prefix}{key}.")
        else:
            found[prefix + key] = inner
    return found


def words(value: object) -> str:
    """A setting's value as a user writes it, in one line."""
    if isinstance(value, str):
        return value
    return (
        str(yaml.safe_dump(value, default_flow_style=True, width=10**9))
        .removesuffix("...\n")
        .strip()
    )


def _listed(manifest: Mapping[str, Any]) -> Iterator[_Place]:
    for row in manifest["runs"]:
        yield _Place(row["run_id"], row["arm"], row["seed"], row["settings"])


def _scanned(path: Path) -> list[_Place]:
    """The runs that lie in a folder; a base model with shots is an arm of its own."""
    places = []
    for result in sorted(path.glob(f"*/{RESULT}")):
        if UNFINISHED.search(result.parent.name) or result.parent.name.startswith("."):
            continue
        found = read_json(result)
        shots = found.get("few_shot")
        arm = str(found.get("arm")) + (f", {shots} shots" if shots else "")
        places.append(_Place(result.parent.name, arm, _seed(found, result)))
    return places


def _seed(result: Mapping[str, Any], path: Path) -> int:
    seed = result.get("seed")
    if not isinstance(seed, int):
        raise InputError(f"{str(path)!r} has the seed {seed!r}, allowed is a number: restore it")
    return seed


def _with_settings(path: Path, places: Sequence[_Place]) -> tuple[list[str], list[_Place]]:
    """Find what sets runs of the same arm apart, beside their seeds."""
    configs = {place.run_id: read_config(path / place.run_id) for place in places}
    by_arm: dict[str, dict[int, Config]] = {}
    for place in places:
        own = configs[place.run_id]
        by_arm.setdefault(place.arm, {})[id(own)] = own
    names = list(dict.fromkeys(n for own in by_arm.values() for n in _varying(own.values())))
    found = []
    for place in places:
        settings = flat(configs[place.run_id])
        own = {name: settings.get(name) for name in names}
        found.append(_Place(place.run_id, place.arm, place.seed, own))
    return names, found


def _varying(configs: Iterable[Config]) -> list[str]:
    settings = [flat(config) for config in configs]
    names = dict.fromkeys(name for own in settings for name in own)
    return [
        name
        for name in names
        if name.partition(".")[0] not in UNCOMPARED
        and any(own.get(name) != settings[0].get(name) for own in settings)
    ]


def _finished(path: Path, place: _Place, names: Sequence[str]) -> ReportedRun | None:
    folder = path / place.run_id
    if not (folder / RESULT).exists():
        return None
    result = read_json(folder / RESULT)
    if not all(key in result for key in ("arm", "scores", "groups", "split", "metric")):
        raise InputError(
            f"{str(folder / RESULT)!r} lacks arm, scores, groups, split or metric: allowed are "
            "runs of this version, move the folder away and run it again"
        )
    setting = ", ".join(words(place.settings.get(name)) for name in names)
    return ReportedRun(place.run_id, place.arm, place.seed, setting, folder, result)


def _one_setting_of_base(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """A base model that was scored once stands for all settings."""
    times = Counter(run.arm for run in runs if not run.trained)
    return [
        ReportedRun(run.run_id, run.arm, run.seed, "", run.folder, run.result)
        if times[run.arm] == 1
        else run
        for run in runs
    ]


def _comparable(runs: Sequence[ReportedRun]) -> tuple[list[ReportedRun], list[Left]]:
    """Keep the runs of the most frequent task, metric and split; the first of equals."""
    kinds = [tuple(str(run.result.get(key)) for key in ("task", "metric", "split")) for run in runs]
    most, _ = Counter(kinds).most_common(1)[0]
    kept, left = [], []
    for run, kind in zip(runs, kinds, strict=True):
        if kind == most and run.result["scores"]:
            kept.append(run)
        else:
            said = f"scored on {' '.join(kind)}, the others on {' '.join(most)}"
            left.append(Left(run.run_id, said if kind != most else "it has no score"))
    if not kept or kept[0].result["metric"] == "perplexity":
        raise InputError(
            f"the runs' metric is {runs[0].result['metric']!r}, allowed are metrics whose scores "
            "are shares from 0 to 1: compare others with schemabank eval"
        )
    return kept, left


def _failed(path: Path, names: set[str]) -> Iterator[Left]:
    """Runs of the suite that failed and have no finished folder."""
    for file in sorted(path.glob(f"*.unfinished-*/{FAILURE}")):
        name = UNFINISHED.sub("", file.parent.name)
        known = name in names or not names
        if known and not (path / name / RESULT).exists():
            yield Left(name, str(read_json(file).get("failure")))


def _strangers(path: Path, known: set[str]) -> Iterator[Left]:
    for result in sorted(path.glob(f"*/{RESULT}")):
        name = result.parent.name
        if name not in known and not UNFINISHED.search(name) and not name.startswith("."):
            yield Left(name, "not a run of this suite")


def _declared(manifest: Mapping[str, Any] | None) -> tuple[str, str] | None:
    found = None if manifest is None else manifest["contrast"]
    return None if found is None else (found["treatment"], found["control"])
