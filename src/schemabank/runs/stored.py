"""``result.json``, ``cost.json``, ``suite.json`` and ``routing.json``, checked when they are read.

A file may be read long after it was written, by another version, or after a disk has failed. So its
shape is checked here, where it is read, and nowhere else.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.config.base import PositiveInt, Seed, Weight
from schemabank.runs.resultshape import Factor, Result, StoredPart, shape_of_group
from schemabank.runs.routingshape import RoutingReport

# The name of a run's folder, which lies beside the file.
RunId = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]


class _Contrast(StoredPart):
    treatment: str
    control: str
    margin: Factor | None = None
    group: str | None = None
    setting: dict[str, Any] | None = None


class _SuiteRow(StoredPart):
    run_id: RunId
    arm: str
    seed: Seed
    settings: dict[str, Any]


class _Trial(_SuiteRow):
    factor: Factor
    learning_rate: Factor


class _Choice(StoredPart):
    arm: str
    settings: dict[str, Any]
    factor: Factor
    learning_rate: Factor
    at_edge: bool


class _Failed(StoredPart):
    run_id: RunId
    inputs: dict[str, str] = Field(default_factory=dict)


class _Tuning(StoredPart):
    split: str
    seeds: list[Seed] = Field(default_factory=list)
    factors: list[Factor] = Field(default_factory=list)
    declared: dict[str, Any] = Field(default_factory=dict)
    runs: list[_Trial]
    failed: list[_Failed] = Field(default_factory=list)
    chosen: list[_Choice]


class _Suite(StoredPart):
    contrast: _Contrast | None
    runs: list[_SuiteRow]
    tuning: _Tuning | None = None


class _Cost(StoredPart):
    device: str | None = None  # costs of before 2026-11-26 lack it
    launcher: str | None = None  # costs of before 2026-11-28 lack these three
    workers: PositiveInt | None = None
    compiling_s: Weight | None = None
    runs_in_cohort: PositiveInt
    training_s: Weight
    evaluation_s: Weight
    peak_host_memory_gib: Weight | None = None
    peak_device_memory_gib: Weight | None = None


def read_result(path: Path) -> dict[str, Any]:
    """Read a run's ``result.json``.

    Raises:
        InputError: it cannot be read, or a value in it is not as it was written.
    """
    return _read_checked(
        path,
        lambda result: _first_wrong(result, Result) or _wrong_in_groups(result),
        mend="restore the file, or move its folder away and run it again",
    )


def read_cost(path: Path) -> dict[str, Any]:
    """Read a run's ``cost.json``.

    Raises:
        InputError: it cannot be read, or a value in it is not as it was written.
    """
    mend = "restore it, or move it away"
    return _read_checked(path, lambda cost: _first_wrong(cost, _Cost), mend=mend)


def read_routing(path: Path) -> dict[str, Any]:
    """Read the ``routing.json`` of an analysis.

    Raises:
        InputError: it cannot be read, or a value in it is not as it was written.
    """
    return _read_checked(
        path,
        lambda report: _first_wrong(report, RoutingReport),
        mend="restore the file, or move its folder away and run `schemabank routing` again",
    )


def read_suite(path: Path) -> dict[str, Any]:
    """Read a suite's ``suite.json``.

    Raises:
        InputError: it cannot be read, or names no runs of a suite.
    """
    manifest: dict[str, Any] = read_json(path)
    wrong = _first_wrong(manifest, _Suite)
    if wrong is not None:
        is_run_id = wrong.name.endswith("run_id")
        names = "; allowed are names of folders beside it" if is_run_id else ""
        raise InputError(
            f"{str(path)!r} is no list of a suite's runs ({wrong}{names}): restore it, or run the "
            "suite again"
        )
    return manifest


@dataclass(frozen=True)
class _WrongValue:
    """The first value of a file that is not as it was written: its dotted name, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name:.200} ({self.reason})"


def _read_checked(
    path: Path, check: Callable[[dict[str, Any]], _WrongValue | None], *, mend: str
) -> dict[str, Any]:
    tree: dict[str, Any] = read_json(path)
    wrong = check(tree)
    if wrong is not None:
        raise InputError(f"{str(path)!r} lacks a usable {wrong}: {mend}")
    return tree


def _wrong_in_groups(result: Mapping[str, Any]) -> _WrongValue | None:
    """The first wrong value of the groups of a result whose other values are right."""
    is_trained = result["training"] is not None
    shape = shape_of_group(result["metric"], tuple(result["scores"]), is_trained=is_trained)
    groups = result["groups"].items()
    found = (_first_wrong(group, shape, "groups", name) for name, group in groups)
    return next((wrong for wrong in found if wrong is not None), None)


def _first_wrong(tree: object, shape: type[StoredPart], *above: str) -> _WrongValue | None:
    """The first value that does not fit a shape, or text that no file in UTF-8 can hold."""
    try:
        json.dumps(tree, ensure_ascii=False).encode()
        shape.model_validate(tree)
    except UnicodeEncodeError as error:
        torn = error.object[max(0, error.start - 20) : error.end]
        reason = f"it holds half a character after {torn!r}, which cannot be shown"
        return _WrongValue("text", reason)
    except ValidationError as error:
        problem = error.errors()[0]
        return _WrongValue(".".join(map(str, (*above, *problem["loc"]))), _in_words(problem))
    return None


def _in_words(problem: ErrorDetails) -> str:
    """Say what a value is and what is allowed, or that it is missing."""
    if problem["type"] == "missing":
        return "it is missing"
    message = problem["msg"].removeprefix("Value error, ")
    allowed = message.removeprefix("Input should be ")
    why = f"allowed is {allowed}" if allowed != problem["msg"] else message[0].lower() + message[1:]
    return f"it is {problem['input']!r:.80}, {why}"
