"""``result.json`` and ``suite.json`` as they must be before anything is made of them.

Both are read by commands that may run long after they were written, by another version or after a
disk has failed, so their shape is checked where they are read and nowhere else.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemabank.errors import InputError
from schemabank.files import read_json
from schemabank.taskconfig import MetricName

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


class _Part(BaseModel):
    """Part of a file; what it holds beside that is left as it is."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Result(_Part):
    arm: str
    metric: MetricName
    split: str
    scores: list[str]
    groups: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    versions: dict[str, str | None]
    model: str
    dtype: str
    task: str
    training: dict[str, Any] | None = None


class _Contrast(_Part):
    treatment: str
    control: str


class _Row(_Part):
    run_id: RunId
    arm: str
    seed: int
    settings: dict[str, Any]


class _Trial(_Row):
    factor: Factor
    learning_rate: Factor | None


class _Choice(_Part):
    arm: str
    settings: dict[str, Any]
    factor: Factor
    learning_rate: Factor | None
    at_edge: bool


class _Failed(_Part):
    run_id: RunId
    inputs: dict[str, str] = {}


class _Tuning(_Part):
    split: str
    seeds: list[int] = []
    factors: list[Factor] = []
    declared: dict[str, Any] = {}
    runs: list[_Trial]
    failed: list[_Failed] = []
    chosen: list[_Choice]


class _Suite(_Part):
    contrast: _Contrast | None
    runs: list[_Row]
    tuning: _Tuning | None = None


def read_result(path: Path) -> dict[str, Any]:
    """Read a run's ``result.json``.

    Raises:
        InputError: it cannot be read, or is not the result of a run.
    """
    result: dict[str, Any] = read_json(path)
    wrong = _wrong(result, _Result) or _uncounted(result) or _unscored(result)
    if wrong is not None:
        raise InputError(
            f"{str(path)!r} lacks a usable {wrong}: allowed are results of this version's runs, "
            "move the folder away and run it again"
        )
    return result


def read_suite(path: Path) -> dict[str, Any]:
    """Read a suite's ``suite.json``.

    Raises:
        InputError: it cannot be read, or names no runs of a suite.
    """
    manifest: dict[str, Any] = read_json(path)
    wrong = _wrong(manifest, _Suite)
    if wrong is not None:
        names = ", allowed are names of folders beside it" if wrong.endswith("run_id") else ""
        raise InputError(
            f"{str(path)!r} is no list of a suite's runs ({wrong} is not as it was written{names})"
            ": restore it, or run the suite again"
        )
    return manifest


def _wrong(tree: Mapping[str, Any], shape: type[_Part]) -> str | None:
    """The dotted name of the first value of another kind."""
    try:
        shape.model_validate(tree)
    except ValidationError as error:
        return ".".join(map(str, error.errors()[0]["loc"]))
    return None


def _uncounted(result: Mapping[str, Any]) -> str | None:
    """The dotted name of the first condition that is no plain value, or count that is none."""
    for name in CONDITIONS:
        if isinstance(result.get(name), dict | list):
            return name
    for name, value in (result.get("training") or {}).items():
        counts = value.values() if isinstance(value, dict) else [value]
        if name.startswith("num_") and not all(map(_is_number, counts)):
            return f"training.{name}"
    return None


def _unscored(result: Mapping[str, Any]) -> str | None:
    """The dotted name of the first group's number that is missing or not finite."""
    for name, group in result["groups"].items():
        if not _is_number(group.get("num_items")) or group["num_items"] < 1:
            return f"groups.{name}.num_items"
        for score in result["scores"]:
            if not _is_number(group.get(score)):
                return f"groups.{name}.{score}"
        for loss in ("gold_nll", "gold_nll_with_end"):
            if not isinstance(group.get(loss), float | int | None):
                return f"groups.{name}.{loss}"
    return None


def _is_number(value: object) -> bool:
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    return is_number and math.isfinite(float(value))  # type: ignore[arg-type]
