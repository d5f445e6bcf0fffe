import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from schemabank.common.errors import InputError
from schemabank.report.comparing.comparison import Comparison, compare
from schemabank.report.plain import plain
from schemabank.report.reading.table import read_scores
from schemabank.stats import holm

A = {"1": [0.30, 0.42, 0.35, 0.51, 0.44], "2": [0.32, 0.40, 0.41, 0.55, 0.46]}
B = {"1": [0.21, 0.40, 0.30, 0.37, 0.41], "2": [0.25, 0.38, 0.42, 0.39, 0.40]}


def table(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["arm,epochs,seed,score,n_items", *rows, ""]))
    return path


def rows(arm: str, scores: dict[str, list[float]]) -> list[str]:
    return [f"{arm},{e},{s},{x},100" for e, own in scores.items() for s, x in enumerate(own)]


def compared(tmp_path: Path, *lines: str, primary: str | None = None) -> Comparison:
    return compare(read_scores(table(tmp_path, *lines)), "new", "lora", primary)


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    return compared(tmp_path, *rows("new", A), *rows("lora", B), "six,,,0.2,100")


def test_arms_by_hand(found: Comparison) -> None:
    at = {(arm.arm, arm.setting): arm.summary for arm in found.arms}
    assert set(at) == {(arm, e) for arm in ("new", "lora") for e in ("1", "2", None)}
    own = at["new", "1"]
    assert own.num_seeds == 5
    assert own.mean == pytest.approx(0.404)
    assert own.sd == pytest.approx(np.std(A["1"], ddof=1))
    assert own.cv == pytest.approx(np.std(A["1"], ddof=1) / 0.404)
    assert own.interval == pytest.approx(
        scipy_stats.t.interval(0.95, 4, 0.404, scipy_stats.sem(A["1"]))
    )
    assert at["new", None].mean == pytest.approx(np.mean([A["1"], A["2"]]))


def test_differences_are_scipys(found: Comparison) -> None:
    for contrast in found.contrasts:
        a, b = A[contrast.setting or ""], B[contrast.setting or ""]
        paired, welch = scipy_stats.ttest_rel(a, b), scipy_stats.ttest_ind(a, b, equal_var=False)
        assert contrast.paired is not None
        assert contrast.paired.difference.p == pytest.approx(paired.pvalue)
        assert contrast.paired.difference.interval == pytest.approx(
            tuple(paired.confidence_interval())
        )
        assert contrast.welch.difference.p == pytest.approx(welch.pvalue)
        assert contrast.welch.difference.df == pytest.approx(welch.df)
        assert contrast.sd_ratio.ratio == pytest.approx(np.std(a) / np.std(b))
        assert contrast.paired.sign_flip.floor == 2 / 2**5
        assert contrast.ratio.ratio == pytest.approx(np.mean(a) / np.mean(b))


def test_holm_covers_the_settings_and_the_pooled_contrast_stands_alone(found: Comparison) -> None:
    paired = [c.paired.difference.p for c in found.contrasts if c.paired]
    assert [c.paired.p_holm for c in found.contrasts if c.paired] == holm([p or 1 for p in paired])
    welch = [c.welch.difference.p or 1 for c in found.contrasts]
    assert [c.welch.p_holm for c in found.contrasts] == holm(welch)
    assert [c.verdict.p for c in found.contrasts] == holm([p or 1 for p in paired])
    assert found.pooled.paired is not None
    assert found.pooled.paired.p_holm is None
    assert found.pooled.verdict.p == found.pooled.paired.difference.p
    means = [np.mean([x["1"], x["2"]], axis=0) for x in (A, B)]
    assert found.pooled.verdict.p == pytest.approx(scipy_stats.ttest_rel(*means).pvalue)


def test_the_primary_contrast_is_said(found: Comparison, tmp_path: Path) -> None:
    assert (found.primary.contrast, found.primary.verdict) == (
        "mean over epochs",
        found.pooled.verdict,
    )
    assert found.primary.holm_family == ["1", "2"]
    named = compared(tmp_path, *rows("new", A), *rows("lora", B), primary="2")
    assert (named.primary.contrast, named.primary.chosen_by) == ("epochs 2", "--primary")
    second = named.contrasts[1]
    assert named.primary.verdict == second.verdict
    assert second.paired is not None
    assert second.verdict.p == second.paired.difference.p
    assert second.paired.p_holm == found.contrasts[1].paired.p_holm  # type: ignore[union-attr]
    with pytest.raises(InputError, match="--primary '3': new and lora have '1', '2'"):
        compared(tmp_path, *rows("new", A), *rows("lora", B), primary="3")


def test_references_have_wilsons_interval(found: Comparison) -> None:
    (reference,) = found.references
    wilson = scipy_stats.binomtest(20, 100).proportion_ci(method="wilson")
    assert reference.interval == pytest.approx((wilson.low, wilson.high))


def test_peaks_name_every_setting_that_reaches_them(tmp_path: Path) -> None:
    new = rows("new", {"1": [0.5, 0.2], "2": [0.5, 0.4], "3": [0.1, 0.4]})
    found = compared(tmp_path, *new, *rows("lora", {"1": [0.1, 0], "2": [0.2, 0], "3": [0, 0]}))
    first, second = found.peaks.seeds
    assert (first.treatment.score, first.treatment.settings) == (0.5, ["1", "2"])
    assert (first.control.score, first.control.settings, first.ratio) == (0.2, ["2"], 2.5)
    assert (second.treatment.settings, second.ratio) == (["2", "3"], None)
    assert found.peaks.ratio_of_means == pytest.approx(4.5)


def test_runs_without_a_partner_are_named_and_welch_keeps_them(tmp_path: Path) -> None:
    found = compared(
        tmp_path, *rows("new", {"1": [0.5, 0.6, 0.7]}), *rows("lora", {"1": [0.1, 0.3]})
    )
    (contrast,) = found.contrasts
    assert contrast.seeds == ["0", "1"]
    assert contrast.left_out == {"treatment": ["2"], "control": []}
    assert contrast.treatment.num_seeds == 3
    assert contrast.test == "paired"
    assert contrast.welch.difference.mean == pytest.approx(0.4)


def test_other_seeds_are_compared_by_welch(tmp_path: Path) -> None:
    lines = [*rows("new", {"1": [0.5, 0.6, 0.7, 0.6]})]
    lines += ["lora,1,7,0.1,", "lora,1,8,0.2,", "lora,1,9,0.15,", "lora,1,10,0.15,"]
    contrast = compared(tmp_path, *lines).pooled
    assert contrast.paired is None
    assert contrast.test == "welch"
    assert contrast.verdict.p == contrast.welch.difference.p
    assert contrast.ratio.ratio == pytest.approx(4)


def test_one_seed_tells_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, "new,,1,0.5,", "lora,,1,0.1,")
    assert found.pooled.verdict.outcome == "no verdict"
    assert found.pooled.welch.detectable is None
    assert found.pooled.paired is not None
    assert found.pooled.paired.detectable is None
    assert found.pooled.sd_ratio.ratio is None


def test_no_spread_gives_no_detectable_difference_of_zero(tmp_path: Path) -> None:
    lines = [*rows("new", {"1": [0.5, 0.5]}), *rows("lora", {"1": [0.1, 0.1]})]
    found = compared(tmp_path, *lines).pooled
    assert found.paired is not None
    assert found.paired.detectable is None
    assert found.welch.detectable is None


def test_seeds_that_lack_every_setting_are_refused(tmp_path: Path) -> None:
    lines = ["new,1,1,0.5,", "new,2,2,0.5,", "lora,1,1,0.1,", "lora,2,1,0.1,"]
    with pytest.raises(InputError, match=r"no seed of 'new' in t.csv has a row at each"):
        compared(tmp_path, *lines)


def test_json_round_trip(found: Comparison) -> None:
    value = plain(found)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert isinstance(value, dict)
    names = {field.name for field in dataclasses.fields(Comparison)}
    assert set(value) == names - {"setting_name"} | {"setting"}
    assert [row["epochs"] for row in value["contrasts"]] == [c.setting for c in found.contrasts]


def test_infinite_numbers_are_null() -> None:
    assert plain({"a": (float("inf"), float("nan"), 1.5)}) == {"a": [None, None, 1.5]}
