"""The intervals and tests against their promises, by the simulations of ``benchmarks/coverage.py``.

Bounds leave room for the simulation's own error; what falls short by design is bounded where it
lies. The figures in docstrings are those of the long simulation's record.
"""

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from schemabank import stats
from tools import BENCHMARKS, load_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(BENCHMARKS / "coverage.py")


def rates(tool: ModuleType, name: str, rounds: int) -> dict[tuple[str, str], float]:
    lines = getattr(tool, name)(np.random.default_rng(0), rounds)
    return {(found.method, found.setting): found.rate for found in lines}


def test_students_and_welchs_intervals(tool: ModuleType) -> None:
    for (method, setting), rate in rates(tool, "means", 2000).items():
        low, high = (0.85, 0.92) if "exponential" in setting else (0.93, 0.97)
        assert low <= rate <= high, (method, setting)


def test_studentised_bootstrap_covers_and_the_others_do_not(tool: ModuleType) -> None:
    for (method, setting), rate in rates(tool, "bootstraps", 500).items():
        if "studentised" in method:
            assert 0.92 <= rate <= 0.975, (method, setting)
        elif "bootstrap" in method:
            assert 0.75 <= rate <= 0.92, (method, setting)


def test_intervals_over_items(tool: ModuleType) -> None:
    for found in (rates(tool, "shares", 1000), rates(tool, "clusters", 500)):
        for key, rate in found.items():
            assert 0.92 <= rate <= 0.97, key


def test_intervals_over_seeds_and_items(tool: ModuleType) -> None:
    """Counting seeds only misses what clusters of items add, by far."""
    found = rates(tool, "crossed", 500)
    for (method, setting), rate in found.items():
        if method == "crossed_difference":
            assert 0.93 <= rate <= 0.975, setting
    assert min(rate for (method, _), rate in found.items() if method == "paired_difference") < 0.6


def test_pigeonhole_bootstrap_is_wide_for_answers_and_narrow_for_seeds(tool: ModuleType) -> None:
    for (_, setting), rate in rates(tool, "pigeonholes", 80).items():
        if setting.endswith("most varied: seeds"):
            assert 0.78 <= rate <= 0.97, setting
        elif "clusters" not in setting:
            assert rate >= 0.96, setting


def test_effect_sizes_and_ratios(tool: ModuleType) -> None:
    found = rates(tool, "effects", 300) | rates(tool, "ratios", 500)
    for (method, setting), rate in found.items():
        if method == "paired_outperformance":
            assert rate >= 0.95, setting
        else:
            assert 0.92 <= rate <= 0.975, (method, setting)


def test_permutation_tests_and_power(tool: ModuleType) -> None:
    for (method, setting), rate in rates(tool, "errors", 400).items():
        if method.startswith("detectable"):
            assert rate == pytest.approx(0.8, abs=0.05), (method, setting)
        else:
            assert rate <= 0.065, (method, setting)


def test_families_err_no_more_than_stated(tool: ModuleType) -> None:
    for (method, setting), rate in rates(tool, "families", 600).items():
        if method == "verdict with holm":
            assert rate <= 0.05 + 2 * 0.0089, setting
        else:
            assert rate >= 0.15, setting


@pytest.fixture(scope="module")
def record() -> dict[tuple[str, str], float]:
    lines = json.loads((ROOT / "results" / "coverage.json").read_text(encoding="utf-8"))["lines"]
    return {(line["method"], line["setting"]): line["rate"] for line in lines}


def test_the_record_keeps_the_promises(record: dict[tuple[str, str], float]) -> None:
    for (method, setting), rate in record.items():
        if method == "crossed_difference":
            assert 0.94 <= rate <= 0.97, setting
        if method == "verdict with holm":
            assert rate <= 0.053, setting


def test_bootstraps_table_is_that_of_the_record(record: dict[tuple[str, str], float]) -> None:
    rows = re.findall(r"\| (\d), (\w+) \|(.*)\|", stats.bootstrap_interval.__doc__ or "")
    assert len(rows) == 4
    names = [f"bootstrap_interval, {method}" for method in ("studentised", "percentile", "bca")]
    for num, shape, cells in rows:
        expected = [record[name, f"{num} values, {shape}"] for name in (*names, "summarise_arm")]
        assert cells.split("|") == [f" {rate:.1%} ".replace("%", " %") for rate in expected]


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (stats.crossed_difference, None),
        (
            stats.pigeonhole_interval,
            [
                "8 seeds x 300 items, most varied: single answers",
                "8 seeds x 300 items, most varied: seeds",
                "4 seeds x 300 items, most varied: seeds",
            ],
        ),
        (
            stats.paired_difference,
            [
                "8 seeds, exponential",
                "4 seeds, exponential",
                "8 seeds x 300 items, most varied: clusters of 25 items",
            ],
        ),
        (stats.resampled_ratio_interval, ["30 books of 1 to 10 windows"]),
        (stats.unpaired_outperformance, ["4 seeds, effect 0", "4 seeds, effect 3"]),
    ],
)
def test_docstrings_figures_are_those_of_the_record(
    record: dict[tuple[str, str], float], function: object, settings: list[str] | None
) -> None:
    name = function.__name__  # type: ignore[attr-defined]
    of_method = {setting: rate for (method, setting), rate in record.items() if method == name}
    if settings is None:
        figures = [min(of_method.values()), max(of_method.values())]
    else:
        figures = [of_method[setting] for setting in settings]
    text = " ".join((function.__doc__ or "").split())
    printed = [float(x) for x in re.findall(r"(\d\d\.\d) %", text)]
    assert printed == [round(100 * rate, 1) for rate in figures]
