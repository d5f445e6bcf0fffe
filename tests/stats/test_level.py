"""Verdicts on equal arms, by the simulation of ``benchmarks/verdicts.py`` and by its record."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from schemabank.stats import (
    FEWEST_SEEDS,
    crossed_difference,
    holm,
    margin_verdict,
    paired_difference,
    verdict,
)
from tools import BENCHMARKS, load_tool

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "verdicts.json"
CALLED = {"better", "worse"}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(BENCHMARKS / "verdicts.py")


def test_a_verdict_takes_as_many_seeds_as_the_record_says(tool: ModuleType) -> None:
    assert tool.enough(tool.read(RECORD)) == FEWEST_SEEDS


def test_the_record_spans_seeds_and_items(tool: ModuleType) -> None:
    lines = tool.read(RECORD)
    assert {line.num_seeds for line in lines} == set(tool.SEEDS) >= {2, 3, 8, 12}
    assert {line.num_items for line in lines} == {48, 100, 300, 1319}
    assert min(line.rounds for line in lines if line.kind == "alike") >= 5000


def test_false_verdicts_of_the_record_are_five_in_a_hundred(tool: ModuleType) -> None:
    """But for three standard errors; with two seeds there would be more, and without Holm."""
    lines = tool.read(RECORD)

    def most(kind: str, method: str, seeds: range) -> float:
        own = [x for x in lines if (x.kind, x.method) == (kind, method) and x.num_seeds in seeds]
        return max(x.rate - 3 * (0.05 * 0.95 / x.rounds) ** 0.5 for x in own)

    enough, two = range(FEWEST_SEEDS, 13), range(2, 3)
    assert most("alike", "crossed_difference", enough) <= 0.05
    assert most("parts", "crossed_difference, holm", enough) <= 0.05
    assert most("parts", "crossed_difference", enough) > 0.15
    assert most("alike", "crossed_difference", two) > 0.05
    assert most("parts", "crossed_difference, holm", range(3, 4)) > 0.05
    assert most("alike", "Satterthwaite's degrees of freedom", range(3, 4)) > 0.05


def test_the_verdicts_docstring_has_the_records_figures(tool: ModuleType) -> None:
    lines = tool.read(RECORD)
    most = {
        (kind, num): max(
            x.rate for x in lines if (x.kind, x.method, x.num_seeds) == (kind, method, num)
        )
        for kind, method in (
            ("alike", "crossed_difference"),
            ("parts", "crossed_difference, holm"),
            ("one arm", "crossed_difference"),
        )
        for num in (2, 3)
    }
    words = " ".join((verdict.__doc__ or "").split())
    printed = re.findall(r"in up to (\d+) %", words)
    said = (most["alike", 2], most["parts", 3], most["one arm", 3])
    assert printed == [f"{100 * rate:.0f}" for rate in said]


def test_the_simulations_tests_are_the_packages(tool: ModuleType) -> None:
    """Every comparison is called different by both or by neither."""
    rng = np.random.default_rng(0)
    for num_seeds, num_items in ((2, 48), (3, 40), (6, 30)):
        for case in (*tool.CASES, *tool.ONE_ARM):
            apart = case.draw(rng, 60, num_seeds, num_items)
            found = tool.Moments.of(apart)
            for alpha in (0.05, 0.01):
                shown = [
                    (
                        both.p is not None and both.p <= alpha,
                        alone.p is not None and alone.p <= alpha,
                    )
                    for own in apart.astype(np.float64)
                    for nothing in [np.zeros_like(own)]
                    for both in [crossed_difference(own, nothing)]
                    for alone in [paired_difference(own.mean(axis=1), nothing.mean(axis=1))]
                ]
                expected = tool.cochran(found, alpha), tool.seeds_alone(found, alpha)
                assert np.array_equal(np.array(shown).T, expected), case.name


def test_holm_keeps_five_parts_together_at_five_in_a_hundred(tool: ModuleType) -> None:
    """The parts share seeds, some differ truly, and the verdicts are the package's own."""
    rng = np.random.default_rng(1)
    rounds, false = 300, 0
    case = next(x for x in tool.CASES if x.name == "seeds by 2 points, items by 10")
    for _ in range(rounds):
        parts = list(case.draw(rng, 5, 4, 60).astype(np.float64))
        parts[0] += 0.5
        found = [crossed_difference(part, np.zeros_like(part)) for part in parts]
        adjusted = holm([1.0 if x.p is None else x.p for x in found])
        judged = [verdict(x, p=p, num_comparisons=5) for x, p in zip(found, adjusted, strict=True)]
        false += any(x.outcome in CALLED for x in judged[1:])
    assert false / rounds <= 0.05 + 3 * (0.05 * 0.95 / rounds) ** 0.5


def test_what_is_said_of_one_arm_is_what_the_record_says(tool: ModuleType) -> None:
    lines = [x for x in tool.read(RECORD) if x.kind == "one arm"]
    most: dict[tuple[str, int], float] = {}
    for line in lines:
        place = line.method, line.num_seeds
        most[place] = max(most.get(place, 0.0), line.rate)
    assert min(rate for (_, seeds), rate in most.items() if seeds >= FEWEST_SEEDS) > 0.05
    own = {seeds: round(100 * most["crossed_difference", seeds]) for seeds in (3, 4, 12)}
    said = (
        f"in up to {own[3]} % of comparisons with three seeds, {own[4]} % with four and {own[12]} %"
    )
    assert said in " ".join((verdict.__doc__ or "").split())


def test_two_seeds_that_happen_to_agree_give_no_verdict() -> None:
    """The control is better on 5 of 48 items for both seeds, which makes p less than 0.05."""
    rng = np.random.default_rng(3)
    control = (rng.random((2, 48)) < 0.4).astype(float)
    treatment = control.copy()
    for seed in range(2):
        right = np.flatnonzero(control[seed])[:5]
        treatment[seed, right] = 0
    found = crossed_difference(treatment, control)
    assert found.p is not None
    assert found.p < 0.05
    judged = verdict(found)
    assert (judged.outcome, judged.p, judged.interval) == ("no verdict", None, found.interval)


@pytest.fixture(scope="module")
def margins() -> ModuleType:
    return load_tool(BENCHMARKS / "margins.py")


def test_the_simulations_words_about_margins_are_the_packages(
    tool: ModuleType, margins: ModuleType
) -> None:
    rng = np.random.default_rng(2)
    for case in tool.CASES:
        apart = case.draw(rng, 40, 5, 40)
        for shift in (-0.03, 0.0, 0.03):
            shown = [
                ("not worse" if outcome == "equivalent" else outcome, outcome)
                for own in apart.astype(np.float64) + shift
                for outcome in [
                    margin_verdict(crossed_difference(own, np.zeros_like(own)), 0.1).outcome
                ]
            ]
            expected = margins.said(margins.verdicts.Moments.of(apart), shift, 0.1)
            assert [first == "not worse" for first, _ in shown] == expected[0].tolist()
            assert [second == "equivalent" for _, second in shown] == expected[1].tolist()


def test_false_words_about_margins_are_five_in_a_hundred(margins: ModuleType) -> None:
    lines = margins.read(ROOT / "results" / "margins.json")
    assert min(line.num_seeds for line in lines) == FEWEST_SEEDS
    assert min(line.rounds for line in lines) >= 5000
    for word in ("not worse", "equivalent"):
        own = [x for x in lines if x.word == word]
        assert {x.case for x in own} == {case.name for case in margins.verdicts.CASES}
        assert max(x.rate - 3 * (0.05 * 0.95 / x.rounds) ** 0.5 for x in own) <= 0.05
    assert max(x.rate for x in lines if x.word == "shown") > 0.9
