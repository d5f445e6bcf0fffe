import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import (
    FEWEST_SEEDS,
    Difference,
    crossed_difference,
    detectable_difference,
    holm,
    paired_difference,
    verdict,
    welch_difference,
)

prop = examples(50)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


class TestHolm:
    def test_rs_example(self) -> None:
        """p.adjust(c(.01, .04, .03, .005), "holm")."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @prop
    @given(p_values, st.sampled_from([0.01, 0.05, 0.3]))
    def test_rejects_as_the_procedure_is_told(self, found: list[float], alpha: float) -> None:
        """Holm 1979: go up from the smallest; stop at the first above alpha over those left."""
        rejected = set()
        for step, index in enumerate(sorted(range(len(found)), key=found.__getitem__)):
            if found[index] * (len(found) - step) > alpha:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(found)) if p <= alpha} == rejected

    @prop
    @given(p_values)
    def test_monotone_and_between_the_raw_and_bonferronis(self, found: list[float]) -> None:
        adjusted = holm(found)
        for raw, p in zip(found, adjusted, strict=True):
            assert raw <= p <= min(1, raw * len(found))
        in_order = [p for _, p in sorted(zip(found, adjusted, strict=True))]
        assert in_order == sorted(in_order)

    def test_one_comparison_is_left_as_it_is(self) -> None:
        assert holm([0.04]) == [0.04]

    @pytest.mark.parametrize("bad", [[], [0.5, 1.1], [-0.1], [float("nan")]])
    def test_no_family(self, bad: list[float]) -> None:
        with pytest.raises(InputError, match="are not a family: give at least one"):
            holm(bad)


def contrast(low: float, high: float, p: float) -> Difference:
    mean, error = (low + high) / 2, (high - low) / 4.6
    return Difference(mean, error, 8, (low, high), p, 0.95, 9)


class TestVerdict:
    @pytest.mark.parametrize(
        ("low", "high", "p", "outcome"),
        [
            (0.01, 0.05, 0.01, "better"),
            (-0.05, -0.01, 0.01, "worse"),
            (-0.01, 0.05, 0.2, "no difference detected"),
            (0.01, 0.05, 0.06, "no difference detected"),
            (-0.01, 0.05, 0.01, "no difference detected"),
            (0.0, 0.05, 0.05, "no difference detected"),
            (0.01, 0.05, 0.05, "better"),
        ],
    )
    def test_both_interval_and_p_must_tell(
        self, low: float, high: float, p: float, outcome: str
    ) -> None:
        assert verdict(contrast(low, high, p)).outcome == outcome

    def test_lower_losses_are_better(self) -> None:
        found = verdict(contrast(-0.05, -0.01, 0.01), higher_is_better=False)
        assert found.outcome == "better"
        assert verdict(contrast(0.01, 0.05, 0.01), higher_is_better=False).outcome == "worse"

    def test_an_adjusted_p_takes_the_place_of_its_own(self) -> None:
        found = verdict(contrast(0.01, 0.05, 0.02), p=0.06)
        assert (found.outcome, found.p) == ("no difference detected", 0.06)

    @pytest.mark.parametrize(
        ("low", "high", "relevance"),
        [
            (0.02, 0.05, "of interest"),
            (-0.05, -0.02, "of interest"),
            (-0.01, 0.019, "too small to matter"),
            (0.001, 0.019, "too small to matter"),
            (0.01, 0.05, "undecided"),
            (-0.01, 0.05, "undecided"),
        ],
    )
    def test_against_the_smallest_difference_of_interest(
        self, low: float, high: float, relevance: str
    ) -> None:
        assert verdict(contrast(low, high, 0.01), smallest=0.02).relevance == relevance
        assert verdict(contrast(low, high, 0.01)).relevance is None

    def test_what_could_have_been_detected(self) -> None:
        a, b = [0.31, 0.35, 0.33, 0.3], [0.3, 0.36, 0.3, 0.31]
        found = paired_difference(a, b)
        alone, family = verdict(found), verdict(found, num_comparisons=5)
        assert alone.outcome == "no difference detected"
        assert alone.detectable == pytest.approx(detectable_difference(sd=found.sd, num_seeds=4))
        assert family.detectable == pytest.approx(
            detectable_difference(sd=found.sd, num_seeds=4, alpha=0.01)
        )
        strict = verdict(paired_difference(a, b, confidence=0.99))
        assert strict.detectable == pytest.approx(family.detectable)

    def test_sentences_are_in_points_throughout(self) -> None:
        found = verdict(contrast(0.01, 0.05, 0.012), smallest=0.02).sentence
        assert found == (
            "Better: +3.00 points (95 % interval +1.00 to +5.00, p = 0.012), undecided."
        )
        found = verdict(contrast(-0.01, 0.05, 0.2)).sentence
        assert found == (
            "No difference detected: +2.00 points (95 % interval -1.00 to +5.00, p = 0.2); a true "
            "difference of 4.18 points would have been found 4 times in 5."
        )

    def test_what_is_no_share_keeps_its_unit(self) -> None:
        found = verdict(contrast(-0.05, -0.01, 0.01), higher_is_better=False, shares=False)
        assert found.sentence == "Better: -0.03 (95 % interval -0.05 to -0.01, p = 0.01)."

    @pytest.mark.parametrize("num", range(1, 7))
    def test_a_verdict_takes_four_seeds(self, num: int) -> None:
        """Whatever the interval and p say."""
        a, b = np.linspace(0.5, 0.51, num), np.zeros(num)
        items = np.linspace(0, 0.1, 40)
        for found in (
            paired_difference(a, b),
            welch_difference(a, np.concatenate([b, b + 0.01])),
            crossed_difference(a[:, None] + items, b[:, None] - items),
        ):
            judged = verdict(found, p=0.001, num_comparisons=3)
            assert found.num_seeds == num
            if num >= FEWEST_SEEDS:
                assert judged.outcome == "better"
                continue
            assert (judged.outcome, judged.p, judged.detectable) == ("no verdict", None, None)
            assert (judged.difference, judged.interval) == (found.mean, found.interval)
            assert judged.sentence.startswith(f"No verdict: {100 * found.mean:+.2f} points")
            seeds = "1 seed is" if num == 1 else f"{num} seeds are"
            assert judged.sentence.endswith(f"{seeds} too few, a verdict takes 4.")
            assert ("95 % interval" in judged.sentence) == (num > 1)

    @pytest.mark.parametrize(
        "empty",
        [
            paired_difference([0.052, 0.102, 0.002, 0.202], [0.05, 0.1, 0, 0.2]),
            welch_difference([0.5] * 4, [0.25] * 5),
        ],
    )
    def test_without_a_spread_nothing_is_detected(self, empty: Difference) -> None:
        found = verdict(empty, p=0.001, smallest=0.01)
        assert found.outcome == "no difference detected"
        assert (found.interval, found.detectable, found.relevance) == (None, None, "undecided")
        assert "cannot tell it from chance" in found.sentence

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"p": 1.5}, r"p 1\.5 is not between 0 and 1"),
            ({"p": float("nan")}, "p nan is not between 0 and 1"),
            ({"num_comparisons": 0}, "0 comparisons: give at least 1"),
            ({"smallest": 0}, "interest 0 is not above 0"),
            ({"smallest": float("nan")}, "interest nan is not above 0"),
        ],
    )
    def test_impossible_rules(self, bad: dict[str, float], message: str) -> None:
        with pytest.raises(InputError, match=message):
            verdict(contrast(0.01, 0.05, 0.01), **bad)
