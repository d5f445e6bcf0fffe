"""``result.json``, ``cost.json``, ``suite.json`` and ``routing.json``, checked when they are read.

They are read by commands that may run long after they were written, by another version or after a
disk has failed, so their shape is checked where they are read and nowhere else.
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
from schemabank.runs.resultshape import Result, StoredPart, shape_of_group
from schemabank.runs.routingshape import RoutingReport

Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Conditions of an evaluation, each a plain value, by which a report tells runs apart.
CONDITIONS = (
    "few_shot",
    "routing",
    "max_new_tokens",
    "num_samples",
    "temperature",
    "top_p",
    "sampling_seed",
    "batch_size",
    "padding_side",
)
# Its name is that of its folder, beside the file.
RunId = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]


class _Contrast(StoredPart):
    treatment: str
    control: str


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
    result: dict[str, Any] = read_json(path)
    wrong = _wrong(result, Result.model_validate) or _wrong_group(result)
    if wrong is not None:
        raise InputError(
            f"{str(path)!r} lacks a usable {wrong}: restore the file, or move its folder away and "
            "run it again"
        )
    return result


def read_cost(path: Path) -> dict[str, Any]:
    """Read a run's ``cost.json``.

    Raises:
        InputError: it cannot be read, or a value in it is not as it was written.
    """
    cost: dict[str, Any] = read_json(path)
    wrong = _wrong(cost, _Cost.model_validate)
    if wrong is not None:
        raise InputError(f"{str(path)!r} lacks a usable {wrong}: restore it, or move it away")
    return cost


def read_suite(path: Path) -> dict[str, Any]:
    """Read a suite's ``suite.json``.

    Raises:
        InputError: it cannot be read, or names no runs of a suite.
    """
    manifest: dict[str, Any] = read_json(path)
    wrong = _wrong(manifest, _Suite.model_validate)
    if wrong is not None:
        names = "; allowed are names of folders beside it" if wrong.is_run_id else ""
        raise InputError(
            f"{str(path)!r} is no list of a suite's runs ({wrong}{names}): restore it, or run the "
            "suite again"
        )
    return manifest


def read_routing(path: Path) -> dict[str, Any]:
    """Read the ``routing.json`` of an analysis.

    Raises:
        InputError: it cannot be read, or a value in it is not as it was written.
    """
    report: dict[str, Any] = read_json(path)
    wrong = _wrong(report, RoutingReport.model_validate)
    if wrong is not None:
        raise InputError(
            f"{str(path)!r} lacks a usable {wrong}: restore the file, or move its folder away and "
            "run `schemabank routing` again"
        )
    return report


@dataclass(frozen=True)
class _Wrong:
    """The first value of a file that is not as it was written: its dotted name, and why."""

    name: str
    said: str

    def __str__(self) -> str:
        return f"{self.name:.200} ({self.said})"

    @property
    def is_run_id(self) -> bool:
        return self.name.endswith("run_id")


def _wrong_group(result: Mapping[str, Any]) -> _Wrong | None:
    """The first wrong value of the groups of a result whose other values are right."""
    is_trained = result["training"] is not None
    shape = shape_of_group(result["metric"], tuple(result["scores"]), is_trained=is_trained)
    found = (
        _wrong(group, shape.model_validate, "groups", name)
        for name, group in result["groups"].items()
    )
    return next((wrong for wrong in found if wrong is not None), None)


def _wrong(tree: object, check: Callable[[Any], object], *above: str) -> _Wrong | None:
    """The first value that a check refuses, or text that no file in UTF-8 can hold."""
    try:
        json.dumps(tree, ensure_ascii=False).encode()
        check(tree)
    except UnicodeEncodeError as error:
        torn = error.object[max(0, error.start - 20) : error.end]
        return _Wrong("text", f"it holds half a character after {torn!r}, which cannot be shown")
    except ValidationError as error:
        problem = error.errors()[0]
        return _Wrong(".".join(map(str, (*above, *problem["loc"]))), _said(problem))
    return None


def _said(problem: ErrorDetails) -> str:
    """Say what a value is and what is allowed, or that it is missing."""
    if problem["type"] == "missing":
        return "it is missing"
    message = problem["msg"].removeprefix("Value error, ")
    allowed = message.removeprefix("Input should be ")
    why = f"allowed is {allowed}" if allowed != problem["msg"] else message[0].lower() + message[1:]
    return f"it is {problem['input']!r:.80}, {why}"
