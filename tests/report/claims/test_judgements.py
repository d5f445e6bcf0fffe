from fractions import Fraction
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.report.claims.judgements import STATISTICS, Judged, judge_claims
from schemabank.report.claims.printed import read_printed
from schemabank.report.claims.statistics import Subject
from schemabank.report.reading.table import read_scores

ROOT = Path(__file__).parents[3]
# Seeds 1 and 2 at 2 and at 4 epochs.
ROWS = """arm,epochs,seed,score,n_items
new,2,1,0.30,100
new,2,2,0.40,100
new,4,1,0.60,100
new,4,2,0.50,100
lora,2,1,0.20,100
lora,2,2,0.10,100
lora,4,1,0.20,100
lora,4,2,0.35,100
"""


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    path = tmp_path / "t.csv"
    path.write_text(ROWS)
    return Subject(read_scores(path), "new", "lora")


def judged(subject: Subject, tmp_path: Path, row: str) -> Judged:
    path = tmp_path / "t.claims.csv"
    path.write_text("statistic,arm,epochs,seed,value,where\n" + row + "\n")
    (found,) = judge_claims(path, subject)
    return found


@pytest.mark.parametrize("na", ["NA", "NaN", "None"])
def test_a_claims_cell_that_holds_nothing_is_empty(
    subject: Subject, tmp_path: Path, na: str
) -> None:
    found = judged(subject, tmp_path, f"mean,new,2,{na},35%,")
    assert (found.follows, found.seed) == (True, "")
    found = judged(subject, tmp_path, f"num_seeds,{na},{na},{na},2,")
    assert (found.follows, found.arm, found.settings) == (True, "", [])


FOLLOWS = [
    ("score,new,2,1,30%,", 0.3),
    ("mean,new,2,,35%,", 0.35),
    ("mean,new,,,45.0%,", 0.45),
    ("ratio_of_means,,2,,2.3x,", 7 / 3),
    ("highest,new,,,60%,", 0.6),
    ("highest_mean,new,,,55%,", 0.55),
    ("highest_ratio_of_means,,,,2.3x,", 7 / 3),
    ("peak,lora,,2,35%,", 0.35),
    ("peak_ratio,,,1,3.0x,", 3.0),
    ("change,lora,2;4,,+12.5%,", 0.125),
    ("change,lora,2;4,,12%,", 0.125),
    ("change,lora,2;4,,13%,", 0.125),
    ("change,lora,4;2,,-12.5%,", -0.125),
    ("num_runs,,,,8,", 8),
    ("num_runs,lora,,,4,", 4),
    ("num_seeds,,,,2,", 2),
    ("num_items,,,,100,", 100),
    ("mean_epochs,new,,,3,", 3),
    ('peak_epochs,lora,,1,"2, 4",', ["2", "4"]),
    ("highest_epochs,new,,,4,", ["4"]),
    ("highest_seed,new,,,1,", ["1"]),
    ("highest_mean_epochs,lora,,,4,", ["4"]),
    ("highest_ratio_epochs,,,,2,", ["2"]),
    ("highest_peak_ratio_seed,,,,1,", ["1"]),
    ("highest_peak_seed,new,,,1,", ["1"]),
    ("lowest_peak_seed,new,,,2,", ["2"]),
    ("best_seed,lora,,,2,", ["2"]),
    ("worst_seed,lora,,,1,", ["1"]),
    ('largest_change_epochs,new,,,"2, 4",', ["2", "4"]),
    ('minutes_of_steps,,,,~5 minutes,"x | steps=7,473, seconds=0.04"', 4.982),
    ('minutes_of_epochs,,,,50 minutes,"x | epochs=10, minutes=5"', 50),
    ('hours_of_runs,,,,16.7 hours,"x | runs=20, minutes=50"', 50 / 3),
]


@pytest.mark.parametrize(("row", "value"), FOLLOWS, ids=lambda x: str(x)[:30])
def test_figures_that_follow(
    subject: Subject, tmp_path: Path, row: str, value: float | list[str]
) -> None:
    found = judged(subject, tmp_path, row)
    assert found.follows, found.sentence
    computed = found.computed["value"]
    assert computed == (value if isinstance(value, list) else pytest.approx(value))


@pytest.mark.parametrize(
    "row",
    [
        "score,new,2,1,31%,",
        "ratio_of_means,,2,,2.4x,",
        "change,lora,4;2,,12.5%,",
        "peak_epochs,lora,,1,2,",
        "best_seed,new,,,1,",
        "always_best_seed,new,,,1,",
        "always_worst_seed,new,,,2,",
        "mean_epochs,new,,,10,",
        'minutes_of_steps,,,,~5 minutes,"x | steps=7,473, seconds=2.3"',
        'hours_of_runs,,,,~33.4 hours,"x | runs=40, minutes=50"',
        "scores_range,new,4,,51-60%,",
        "scores_within,new,4,,51-60%,",
        "every_ratio_of_means,,,,3x,",
        "lower_sd,,,,lower,",
        "lower_cv,,,,lower,",
        "narrower_range,,2,,narrower,",
        "difference_detected,,2,,sure,",
        "cohens_d,,,,9.9,",
    ],
)
def test_figures_that_do_not(subject: Subject, tmp_path: Path, row: str) -> None:
    found = judged(subject, tmp_path, row)
    assert not found.follows, found.sentence


@pytest.mark.parametrize(
    "row",
    [
        "scores_range,new,4,,50-60%,",
        "scores_within,new,4,,40-60%,",
        "means_within,lora,2,,~15-20%,",
        "means_range,new,,,35-55%,",
        "every_ratio_of_means,,,,2x,",
        "every_seeds_ratio,,,,2x,",
        "narrower_range,,4,,narrower,",
        "every_seed_improves,,,,all,",
        "every_pair_improves,,,,all,",
        "always_best_seed,lora,4,,2,",
    ],
)
def test_words_and_ranges_that_follow(subject: Subject, tmp_path: Path, row: str) -> None:
    found = judged(subject, tmp_path, row)
    assert found.follows, found.sentence


def test_a_seed_that_is_not_always_the_best_is_told_when(subject: Subject, tmp_path: Path) -> None:
    found = judged(subject, tmp_path, "always_best_seed,new,,,1,")
    assert found.computed == {"by_epochs": {"2": ["2"], "4": ["1"]}}
    assert "2: 2, 4: 1" in found.sentence


def test_a_range_marked_as_approximate_is_rounded(subject: Subject, tmp_path: Path) -> None:
    rows = "scores_within,lora,,,~0.1-0.3,"
    assert judged(subject, tmp_path, rows.replace("0.3", "0.4")).follows
    assert not judged(subject, tmp_path, rows).follows
    exact = judged(subject, tmp_path, "means_within,lora,2,,0.2-0.3,")
    assert not exact.follows
    assert judged(subject, tmp_path, "means_within,lora,2,,~0.2-0.3,").follows


@pytest.mark.parametrize(
    ("value", "fits"), [("7.1%", ["n - 1"]), ("5.0%", ["n"]), ("6%", []), ("7%", ["n - 1"])]
)
def test_either_divisor_of_an_sd(
    subject: Subject, tmp_path: Path, value: str, fits: list[str]
) -> None:
    found = judged(subject, tmp_path, f"sd,new,2,,{value},")
    assert found.follows == bool(fits)
    assert found.computed["fits"] == fits
    assert found.computed["divided by n - 1"] == pytest.approx(0.1 / 2**0.5)
    assert found.computed["divided by n"] == pytest.approx(0.05)


def test_a_cv(subject: Subject, tmp_path: Path) -> None:
    found = judged(subject, tmp_path, "cv,new,2,,20%,")
    assert found.computed["divided by n - 1"] == pytest.approx(0.1 / 2**0.5 / 0.35)
    assert found.computed["fits"] == ["n - 1"]


def test_cohens_d_by_hand(subject: Subject, tmp_path: Path) -> None:
    found = judged(subject, tmp_path, "cohens_d,,2,,2.8,")
    assert found.computed["value"] == pytest.approx(0.2 / (0.1 / 2**0.5))
    assert found.follows


def test_what_cannot_be_computed_does_not_follow(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arm,epochs,seed,score\nnew,1,1,0.5\nlora,1,1,0\n")
    subject = Subject(read_scores(path), "new", "lora")
    for row in ("ratio_of_means,,,,3x,", "sd,new,,,1%,", "peak_ratio,,,1,3x,"):
        found = judged(subject, tmp_path, row)
        assert not found.follows
        assert "divide by 0" in found.sentence
    with pytest.raises(InputError, match="a score of 0 has no logarithm"):
        judged(subject, tmp_path, "lower_cv,,,,lower,")
    with pytest.raises(InputError, match="n_items is not one number"):
        judged(subject, tmp_path, "num_items,,,,100,")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("median,new,,,3%,", "statistic 'median' is unknown: name one of score, "),
        ("mean,,2,,3%,", "mean needs arm"),
        ("score,new,2,,3%,", "score needs arm, epochs, seed"),
        ("sd,,2,,3%,", "sd needs arm"),
        ("change,new,2,,3%,", "the epochs before and after"),
        ("mean,old,2,,3%,", "arm 'old' has no runs: name one of new, lora"),
        ("mean,new,3,,3%,", "epochs '3' has no runs of new: name some of 2, 4"),
        ("score,new,2,7,3%,", "seed '7' has no runs of new"),
        ("mean,new,2,,three,", "value 'three' is no figure"),
        ("mean,new,2,,٣%,", "is no figure"),
        ("scores_range,new,2,,3%,", "'3%' is no range"),
        ("minutes_of_steps,,,,5 minutes,x | steps=7", "rests on seconds"),
        ("mean,new,2,,3%", "5 cells for 6 columns"),
    ],
)
def test_a_wrong_claim_is_named(subject: Subject, tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        judged(subject, tmp_path, row)
    assert words in str(error.value)
    assert "t.claims.csv line 2" in str(error.value)


@pytest.mark.parametrize(
    ("text", "low", "high", "unit", "about"),
    [
        ("3.45%", "0.0345", None, "%", False),
        ("≈ 5.0", "5", None, "", True),
        ("8–11%", "0.08", "0.11", "%", False),
        ("~16.7 hours", "16.7", None, "hours", True),
        ("7,473", "7473", None, "", False),
        ("−1.5x", "-1.5", None, "x", False),
        ("±1-2%", "0.01", "0.02", "%", False),
    ],
)
def test_printed_figures(text: str, low: str, high: str | None, unit: str, about: bool) -> None:
    found = read_printed(text, "here")
    assert (found.low, found.high) == (Fraction(low), None if high is None else Fraction(high))
    assert (found.unit, found.about) == (unit, about)


def test_halves_round_up_and_to_even() -> None:
    half = Fraction("0.0345")
    assert all(read_printed(text, "here").fits(half) for text in ("3.5%", "3.4%", "3.45%"))
    assert not read_printed("3.3%", "here").fits(half)
    assert read_printed("-3.5%", "here").fits(-half)


def test_the_page_lists_every_statistic() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    listed = page.partition("| statistic | rule |")[2].partition("\n\n")[0]
    assert [name for name in STATISTICS if f"`{name}`" not in listed] == []
