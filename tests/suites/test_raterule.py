"""The rule that chooses among learning rates."""

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemabank.common.errors import InputError
from schemabank.stats import paired_difference
from schemabank.suites.raterule import NEAR, Candidate, ItemMeans, best_score, choose, paired_error
from tools import BENCHMARKS, load_tool

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "rate_rule.json"


def means(score: float | None, gold_nll: float, *, num_items: int = 100) -> Candidate:
    return Candidate(1e-3, score, gold_nll, None, num_items, 2)


def answering(
    scores: np.ndarray, gold_nll: float, clusters: list[int] | None = None, digest: str = ""
) -> Candidate:
    numbers = np.array(clusters or range(len(scores)), np.int32)
    answers = ItemMeans(np.asarray(scores, np.float64), numbers, digest)
    return Candidate(1e-3, float(np.mean(scores)), gold_nll, None, len(scores), 2, answers)


@pytest.mark.parametrize(
    ("tried", "index"),
    [
        # A quarter of the error of 0.5 on 2 x 100 items is 0.0125: 0.49 is near, 0.48 is not.
        ([(0.50, 1.0), (0.49, 0.9), (0.48, 0.1)], 1),
        ([(0.50, 0.8), (0.49, 0.9), (0.48, 0.1)], 0),
        ([(0.00, 3.0), (0.00, 2.0), (0.00, 2.5)], 1),
        ([(1.00, 3.0), (0.99, 2.0)], 0),
        ([(0.50, 1.0), (0.50, 1.0)], 0),
        ([(None, 3.0), (None, 2.0)], 1),
    ],
)
def test_the_rule_where_means_alone_are_known(
    tried: list[tuple[float | None, float]], index: int
) -> None:
    candidates = [means(*pair) for pair in tried]
    assert choose(candidates) is candidates[index]


def test_candidates_that_answer_alike_are_told_apart_by_fewer_items() -> None:
    """2 points are a lot where all other items are answered alike, and nothing where none are."""
    best = np.zeros(100)
    best[:40] = 1
    alike, unlike = best.copy(), np.zeros(100)
    alike[:2] = 0
    unlike[-38:] = 1
    first = answering(best, 1.0)
    assert choose([first, answering(alike, 0.5)]) is first
    other = answering(unlike, 0.5)
    assert choose([first, other]) is other
    assert best_score([first, other]) is first


def test_of_equal_scores_the_lower_loss_decides_whatever_the_items() -> None:
    first, second = answering(np.array([1, 0, 1, 0]), 1.0), answering(np.array([0, 1, 0, 1]), 0.9)
    assert choose([first, second]) is second
    assert best_score([first, second]) is second


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_the_error_is_that_of_a_paired_difference(pairs: list[tuple[float, float]]) -> None:
    one, other = (answering(np.array(own), 1.0) for own in zip(*pairs, strict=True))
    expected = paired_difference(*zip(*pairs, strict=True)).standard_error
    assert paired_error(one, other) == pytest.approx(expected, abs=1e-9)


def test_items_of_a_cluster_count_together() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 12))
    clusters = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    apart = a - b - (a - b).mean()
    sums = [sum(own for own, at in zip(apart, clusters, strict=True) if at == c) for c in range(4)]
    found = paired_error(answering(a, 1, clusters), answering(b, 1, clusters))
    assert found == pytest.approx((4 / 3 * sum(s * s for s in sums)) ** 0.5 / 12, rel=1e-9)
    assert paired_error(answering(a, 1, [0] * 12), answering(b, 1, [0] * 12)) == 0


def test_clusters_decide_which_rates_are_near_the_best() -> None:
    """So a trial of an older version, which recorded none, may choose another rate."""
    best, other = np.zeros((2, 32))
    best[:8], other[8:14] = 1, 1  # right where the other one is wrong, each in a cluster of 8
    together = [number // 8 for number in range(32)]
    alone, apart = answering(best, 1.0), answering(other, 0.5)
    assert choose([alone, apart]) is alone
    pair = answering(best, 1.0, together), answering(other, 0.5, together)
    assert choose(pair) is pair[1]


def test_candidates_with_other_items_are_refused() -> None:
    one, other = (answering(np.array([1, 0]), 1.0, digest=name) for name in "ab")
    with pytest.raises(InputError, match="scored on other items"):
        choose([one, other])


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 20)), min_size=1, max_size=8))
def test_what_is_chosen_is_near_the_best_and_none_so_near_has_a_lower_loss(
    pairs: list[tuple[int, float]],
) -> None:
    tried = [means(right / 40, nll, num_items=40) for right, nll in pairs]
    chosen, best = choose(tried), best_score(tried)
    assert best.score == max(c.score or 0 for c in tried)

    def is_near(own: Candidate) -> bool:
        away = (best.score or 0) - (own.score or 0)
        return away <= NEAR * paired_error(best, own) + 1e-9

    assert is_near(chosen)
    assert all(chosen.gold_nll <= c.gold_nll for c in tried if is_near(c))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(BENCHMARKS / "rate_rule.py")


OWN, BEFORE = "the rule of tune", "before: one binomial error of a run"


def test_the_record_has_the_rule_at_least_as_accurate_as_the_one_before() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    found: dict[tuple[str, int], dict[str, float]] = {}
    for line in record["lines"]:
        found.setdefault((line["worlds"], line["num_items"]), {})[line["rule"]] = line["accuracy"]
    assert len(found) == 15
    gained = [rules[OWN] - rules[BEFORE] for rules in found.values()]
    assert min(gained) > -0.0005
    assert math.fsum(gained) / len(gained) > 0.0005
    best = max(
        (rule for rule in found["recorded", 100] if rule != "best possible"),
        key=lambda rule: math.fsum(
            rules[rule] / rules["best possible"] for rules in found.values()
        ),
    )
    assert math.fsum(rules[OWN] for rules in found.values()) == pytest.approx(
        math.fsum(rules[best] for rules in found.values()), rel=1e-3
    )


def test_the_record_has_the_best_score_alone_within_three_hundredths_of_a_point() -> None:
    lines = json.loads(RECORD.read_text(encoding="utf-8"))["lines"]
    ahead = {(x["worlds"], x["num_items"]): x["ahead"] for x in lines if x["rule"] == OWN}
    for name in {worlds for worlds, _ in ahead}:
        own = [points for (worlds, _), points in ahead.items() if worlds == name]
        assert abs(math.fsum(own) / len(own)) < 0.0003


def test_the_records_choices_are_what_the_rules_choose(tool: ModuleType) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["records"] == tool.on_records()


def test_the_simulation_uses_the_packages_rule(tool: ModuleType) -> None:
    rng = np.random.default_rng(0)
    worlds = [tool.drawn_world(rng, 0.3) for _ in range(20)]
    lines = {x.rule: x.accuracy for x in tool.compared(rng, "drawn", worlds, 100)}
    assert lines["lowest loss alone"] < lines[OWN] <= lines["best possible"]
    for rule, world in zip(range(20), worlds, strict=True):
        tried = tool.answered(np.random.default_rng(rule), world, 100)
        assert tried.candidates[tool.chosen(tried)] is choose(tried.candidates)
