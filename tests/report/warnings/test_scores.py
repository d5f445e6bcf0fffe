from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemabank.common.errors import InputError
from schemabank.report.comparing.comparison import compare
from schemabank.report.plain import plain
from schemabank.report.reading.table import read_scores
from schemabank.report.warnings.scores import Finding, find_warnings

NEW = [0.60, 0.62, 0.61, 0.63, 0.60, 0.62]
LORA = [0.40, 0.48, 0.33, 0.45, 0.37, 0.52]


def rows(arm: str, scores: Sequence[float], epochs: str = "2", items: object = 100) -> list[str]:
    return [f"{arm},{epochs},{seed},{score},{items}" for seed, score in enumerate(scores)]


def warned(tmp_path: Path, *lines: str, test_size: int | None = None) -> list[Finding]:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["arm,epochs,seed,score,n_items", *lines, ""]))
    table = read_scores(path)
    return find_warnings(table, compare(table, "new", "lora", None), test_size)


def one(found: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in found if finding.id == name]
    assert finding.sentence.endswith(".")
    return finding


def ids(found: list[Finding]) -> list[str]:
    return [finding.id for finding in found]


SOUND = [*rows("new", NEW), *rows("lora", LORA), "base,,,0.1,100"]


def test_a_sound_table_is_not_warned_of(tmp_path: Path) -> None:
    assert warned(tmp_path, *SOUND, test_size=100) == []


def test_identical_rows_name_seeds_and_values(tmp_path: Path) -> None:
    found = warned(tmp_path, *SOUND, *rows("lora", LORA, "4"), *rows("new", NEW[::-1], "4"))
    finding = one(found, "identical-rows")
    assert finding.numbers["arm"] == "lora"
    assert finding.numbers["epochs"] == ["2", "4"]
    assert finding.numbers["scores"] == {str(s): x for s, x in enumerate(LORA)}
    assert "epochs 2 and 4 (seeds 0: 40 %, 1: 48 %" in finding.sentence


def test_one_seed_alone_may_agree(tmp_path: Path) -> None:
    lines = [f"{arm},{e},1,0.{d},10" for arm, d in (("new", 3), ("lora", 2)) for e in (2, 4)]
    assert "identical-rows" not in ids(warned(tmp_path, *lines))


def test_scores_that_no_count_gives(tmp_path: Path) -> None:
    lines = [*SOUND[:-1], "base,,,0.105,100", "other,,,0.33,3", "third,,,0.3,7", "last,,,0.30,7"]
    finding = one(warned(tmp_path, *lines), "impossible-score")
    found = finding.numbers["rows"]
    assert isinstance(found, list)
    assert [row["arm"] for row in found] == ["base", "last"]  # 2 of 7 is 0.286: 0.3, but not 0.30
    assert "base with 10.5 % of 100" in finding.sentence


@pytest.mark.parametrize("size", [300, 1319, 10_000_000])
def test_a_share_in_full_is_possible(size: int, tmp_path: Path) -> None:
    """As programs write it: 17/300 has no last decimal, and numbers have only so many bits."""
    counts = [1, 17, size // 3, size - 1]
    given: list[object] = [count / size for count in counts]
    given += [float(np.mean([1.0] * count + [0.0] * (300 - count))) for count in (17, 41)] * (
        size == 300
    )
    given += [np.float32(count / size) for count in counts]
    lines = [f"new,2,{seed},{score},{size}" for seed, score in enumerate(given)]
    found = warned(tmp_path, *lines, *rows("lora", LORA), SOUND[-1])
    assert "impossible-score" not in ids(found)


def test_a_share_in_full_that_no_count_gives_is_found(tmp_path: Path) -> None:
    lines = [*SOUND[:-1], "base,,,0.056666766666666664,300"]
    assert one(warned(tmp_path, *lines), "impossible-score").numbers["rows"]


def test_a_subset_needs_the_whole_size(tmp_path: Path) -> None:
    assert "subset-of-test" not in ids(warned(tmp_path, *SOUND))
    finding = one(warned(tmp_path, *SOUND, test_size=1319), "subset-of-test")
    assert finding.numbers == {"n_items": [100], "test_size": 1319}
    with pytest.raises(InputError, match=r"t.csv line 2: n_items 100 is more than --test-size 99"):
        warned(tmp_path, *SOUND, test_size=99)


def test_an_arm_at_and_below_a_reference(tmp_path: Path) -> None:
    found = warned(tmp_path, *SOUND[:-1], "constant,,,0.43,100", "base,,,0.9,100")
    at = one(found, "not-above-reference")
    assert (at.numbers["arm"], references(at)) == ("lora", ["constant"])
    assert "Student's 95 % interval over seeds" in at.sentence
    below = [finding for finding in found if finding.id == "below-reference"]
    assert [(f.numbers["arm"], references(f)) for f in below] == [
        ("new", ["base"]),
        ("lora", ["base"]),
    ]


def references(finding: Finding) -> list[str]:
    found: Any = finding.numbers["references"]
    return [own["reference"] for own in found]


def test_one_finding_tells_of_all_references(tmp_path: Path) -> None:
    lines = [*SOUND[:-1], "base,,,0.9,100", "base whole,,,0.95,100", "constant,,,0.43,100"]
    found = [f for f in warned(tmp_path, *lines) if f.numbers.get("arm") == "lora"]
    assert [(f.id, references(f)) for f in found] == [
        ("not-above-reference", ["constant"]),
        ("below-reference", ["base", "base whole"]),
    ]
    assert found[1].sentence == (
        "lora is below 'base' (90 %; of 6 runs, 0 above it and 6 below) and 'base whole' (95 %; of "
        "6 runs, 0 above it and 6 below) over all epochs and at epochs 2, by Student's 95 % "
        "interval over seeds, 35 % to 50 % over all epochs. References are taken as exact; runs "
        "are counted by exact binomial tests, Holm-adjusted."
    )


def test_one_seed_is_judged_by_exact_tests(tmp_path: Path) -> None:
    lines = ["new,,1,0.5,100", "lora,,1,0.22,100", "base,,,0.2,"]
    finding = one(warned(tmp_path, *lines), "not-above-reference")
    assert finding.numbers["arm"] == "lora"
    assert "by exact binomial tests of single runs" in finding.sentence
    value: Any = plain(finding.numbers["references"])
    value = value[0]["found"]
    assert value[0]["num_runs_tested"] == 1
    assert value[0]["pooled_wilson_interval"] == pytest.approx([0.1500, 0.3107], abs=1e-4)


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    found = warned(tmp_path, "new,,1,0.5,", "lora,,1,0.22,", "base,,,0.2,")
    assert ids(found) == ["few-seeds"]
    assert found[0].sentence.startswith("1 seed: a two-sided label permutation")


def test_no_reference(tmp_path: Path) -> None:
    assert ids(warned(tmp_path, *SOUND[:-1])) == ["no-reference"]


def test_few_seeds_and_their_floor(tmp_path: Path) -> None:
    lines = [*rows("new", NEW[:4]), *rows("lora", LORA[:4]), SOUND[-1]]
    finding = one(warned(tmp_path, *lines), "few-seeds")
    assert finding.numbers == {"num_seeds": 4, "floor": 0.125, "fewest": 6}
    assert "cannot go below p = 0.125" in finding.sentence
    apart = [*rows("new", NEW[:3]), *(f"lora,2,9{s},0.{s},100" for s in (3, 4, 5)), SOUND[-1]]
    assert one(warned(tmp_path, *apart), "few-seeds").numbers["floor"] == pytest.approx(0.1)


def test_epochs_may_be_empty(tmp_path: Path) -> None:
    lines = [*rows("new", NEW, ""), *rows("lora", LORA, ""), "base,,,0.45,100"]
    finding = one(warned(tmp_path, *lines), "not-above-reference")
    assert "(45 %; of 6 runs, 0 above it and 0 below), by Student's" in finding.sentence


def test_runs_left_out(tmp_path: Path) -> None:
    finding = one(warned(tmp_path, *SOUND, "lora,2,99,0.4,100"), "runs-left-out")
    assert finding.numbers["by_epochs"] == {"epochs 2": {"treatment": [], "control": ["99"]}}


def test_a_lower_spread_that_is_not_shown(tmp_path: Path) -> None:
    lines = [*rows("new", [x + 0.3 for x in LORA[::-1]]), *rows("lora", LORA), SOUND[-1]]
    finding = one(warned(tmp_path, *lines), "lower-variance-unsupported")
    assert "contains 1 at epochs 2 (1, 0.374 to 2.67)" in finding.sentence


def test_selection_on_test(tmp_path: Path) -> None:
    lines = [*SOUND, *rows("new", [0.61, *NEW[1:]], "4"), *rows("lora", [0.42, *LORA[1:]], "4")]
    finding = one(warned(tmp_path, *lines), "selection-on-test")
    assert finding.numbers["num_epochs"] == 2
    peaks = finding.numbers["mean_peaks"]
    assert isinstance(peaks, dict)
    assert peaks["lora"] == pytest.approx((sum(LORA) + 0.02) / 6)
