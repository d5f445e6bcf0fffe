import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nct
from scipy.stats import t as student

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import detectable_difference, detectable_from_error, detection_power

prop = examples(40)


class TestDetectionPower:
    def test_rs_example(self) -> None:
        """R's manual page of power.t.test: n = 20, delta = 1 gives 0.8689528, of one tail."""
        found = detection_power(1, sd=1, num_seeds=20, paired=False)
        assert found == pytest.approx(0.8689528, abs=3e-7)

    @prop
    @given(st.floats(0, 3), st.integers(2, 30), st.booleans(), st.sampled_from([0.01, 0.05, 0.2]))
    def test_both_tails_of_the_noncentral_t(
        self, difference: float, num: int, paired: bool, alpha: float
    ) -> None:
        found = detection_power(difference, sd=1, num_seeds=num, paired=paired, alpha=alpha)
        df = num - 1 if paired else 2 * num - 2
        shift = difference * (num if paired else num / 2) ** 0.5
        least = student.isf(alpha / 2, df)
        within = nct.cdf(least, df, shift) - nct.sf(least, df, -shift)
        assert found == pytest.approx(1 - within, abs=1e-7)

    def test_without_a_difference_it_is_alpha(self) -> None:
        assert detection_power(0, sd=1, num_seeds=4) == pytest.approx(0.05)
        up, down = (detection_power(d, sd=1, num_seeds=4) for d in (1, -1))
        assert up == pytest.approx(down)

    def test_one_seed_and_no_spread(self) -> None:
        assert detection_power(1, sd=1, num_seeds=1) is None
        with pytest.raises(InputError, match="sd 0 allows no test"):
            detection_power(1, sd=0, num_seeds=4)


class TestDetectableDifference:
    def test_rs_examples(self) -> None:
        """power.t.test(delta = 1, power = .9) is n = 22.02; delta = .75, sd = 2.25: n = 190.1."""
        wide, narrow = (
            detectable_difference(sd=1, num_seeds=num, paired=False, power=0.9) for num in (22, 23)
        )
        assert narrow < 1 < wide == pytest.approx(1, abs=1e-3)
        found = detectable_difference(sd=2.25, num_seeds=190, paired=False, power=0.9)
        assert found == pytest.approx(0.75, abs=3e-4)

    @prop
    @given(
        st.integers(2, 40),
        st.booleans(),
        st.sampled_from([1e-4, 0.05, 0.3]),
        st.sampled_from([0.5, 0.8, 0.99]),
        st.floats(0.001, 10),
    )
    def test_it_inverts_the_power(
        self, num: int, paired: bool, alpha: float, power: float, sd: float
    ) -> None:
        found = detectable_difference(sd=sd, num_seeds=num, paired=paired, alpha=alpha, power=power)
        again = detection_power(found, sd=sd, num_seeds=num, paired=paired, alpha=alpha)
        assert again == pytest.approx(power, abs=1e-6)

    def test_what_few_seeds_detect(self) -> None:
        """In standard deviations of the paired differences."""
        found = [detectable_difference(sd=1, num_seeds=num) for num in (4, 6, 8)]
        assert found == pytest.approx([2.1279, 1.4345, 1.1560], abs=1e-3)

    def test_one_seed_detects_nothing_and_no_spread_everything(self) -> None:
        assert detectable_difference(sd=1, num_seeds=1) is None
        assert detectable_difference(sd=0, num_seeds=4) == 0

    def test_fractional_degrees_of_freedom(self) -> None:
        found = detectable_from_error(0.01, 9.3)
        assert detectable_from_error(0.01, 9) > found > detectable_from_error(0.01, 10)
        assert detectable_from_error(1, 1e6) == pytest.approx(1.959964 + 0.841621, abs=1e-4)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"sd": -1}, "sd -1 is not a standard deviation"),
            ({"sd": float("nan")}, "sd nan is not a standard deviation"),
            ({"num_seeds": 0}, "0 seeds: give at least 1"),
            ({"alpha": 5}, "alpha 5 is not between 0 and 1"),
            ({"power": 0.01}, r"power 0\.01 is not between alpha 0\.05 and 1"),
            ({"power": 1}, r"power 1 is not between alpha 0\.05 and 1"),
        ],
    )
    def test_impossible_designs(self, bad: dict[str, float], message: str) -> None:
        with pytest.raises(InputError, match=message):
            detectable_difference(**({"sd": 1, "num_seeds": 4} | bad))

    @pytest.mark.parametrize(("error", "df"), [(-1, 3), (float("nan"), 3), (1, 0), (1, 1e999)])
    def test_impossible_errors(self, error: float, df: float) -> None:
        with pytest.raises(InputError, match="degrees of freedom: give an error"):
            detectable_from_error(error, df)
