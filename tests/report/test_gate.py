"""``--margin`` and ``--fail-if-worse``: what a report says, and how the command ends."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reports import html_page, page, text
from schemabank.runs.folder import SUITE
from synthetic import change, examined, finding, ids

Program = Callable[..., tuple[int, str, str]]
NOISE = (0.0, 0.004, -0.004, 0.002, -0.002, 0.001)


@pytest.fixture
def schemabank(program: Callable[[str], Program]) -> Program:
    return program("report")


def table(folder: Path, difference: float, seeds: int = 6) -> Path:
    """Two arms whose paired differences scatter by a third of a point."""
    path = folder / "t.csv"
    rows = [f"lora,,{n},{0.5 + 0.01 * n}" for n in range(seeds)]
    rows += [f"new,,{n},{0.5 + 0.01 * n + difference + NOISE[n]:.6f}" for n in range(seeds)]
    path.write_text("\n".join(["arm,epochs,seed,score", *rows, ""]))
    return path


@pytest.mark.parametrize(
    ("difference", "options", "code", "words"),
    [
        (-0.03, [], 1, "worse: new against lora: Worse: -2.98 points"),
        (0.03, [], 0, ""),
        (0.0, [], 0, ""),
        (-0.03, ["--margin", "5"], 0, ""),
        (-0.03, ["--margin", "1"], 1, "worse: new against lora: Neither equivalent within ±1.0"),
        (0.0, ["--margin", "1"], 0, ""),
        (0.0, ["--margin", "0.1"], 1, "nor shown to be not worse by more than 0.1 points"),
        (0.03, ["--margin", "0.1"], 0, ""),
    ],
)
def test_the_exit_code_is_the_answer(
    schemabank: Program,
    tmp_path: Path,
    *,
    difference: float,
    options: list[str],
    code: int,
    words: str,
) -> None:
    path = table(tmp_path, difference)
    ended, out, err = schemabank(path, "--fail-if-worse", *options)
    assert ended == code
    assert words in err
    assert bool(err) == bool(code)
    assert "verdict: new against lora" in out, "the report is printed in any case"
    assert schemabank(path, *options)[0] == 0, "without the option no report fails"


def test_a_gate_that_could_never_fail_is_bad_input(schemabank: Program, tmp_path: Path) -> None:
    path = table(tmp_path, -0.03, seeds=3)
    code, out, err = schemabank(path, "--fail-if-worse")
    assert (code, out) == (2, "")
    assert "3 seeds are too few, a verdict takes 4" in err
    assert "or give --margin" in err
    code, _, err = schemabank(path, "--fail-if-worse", "--margin", "9")
    assert code == 1, "a margin must be shown, which few seeds cannot"
    assert "No verdict on a margin of 9.0 points: 3 seeds are too few" in err


def test_seeds_without_spread_show_nothing(schemabank: Program, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{arm},,{n},{score}" for n in range(5) for arm, score in (("lora", 0.5), ("new", 0.4))]
    path.write_text("\n".join(["arm,epochs,seed,score", *rows, ""]))
    code, _, err = schemabank(path, "--fail-if-worse")
    assert code == 2
    assert "has no test" in err


def test_arms_that_answer_alike_are_not_worse(schemabank: Program, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{arm},,{n},0.5" for n in range(5) for arm in ("lora", "new")]
    path.write_text("\n".join(["arm,epochs,seed,score", *rows, ""]))
    assert schemabank(path, "--fail-if-worse")[0] == 0
    assert schemabank(path, "--fail-if-worse", "--margin", "1")[0] == 1, "nothing is shown"


def test_a_report_is_written_before_it_fails(schemabank: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = table(tmp_path, -0.03)
    code, printed, _ = schemabank(path, "--fail-if-worse", "--json", "--out", out)
    assert code == 1
    assert json.loads(printed)["primary"]["verdict"]["outcome"] == "worse"
    assert (out / "report.html").exists()


@pytest.mark.parametrize("margin", ["0", "-1", "101", "nan"])
def test_margins_that_are_none(schemabank: Program, tmp_path: Path, margin: str) -> None:
    code, _, err = schemabank(table(tmp_path, 0), "--margin", margin)
    assert code == 2
    assert "allowed are percentage points above 0 and up to 100" in err


class TestDeclared:
    def test_a_suites_margin_is_judged_and_said_on_every_page(self, runs: Path) -> None:
        contrast = {"treatment": "arm 0", "control": "arm 1", "margin": 60.0}
        change(runs / SUITE, contrast=contrast)
        found, drawn = examined(runs)
        judged = found["primary"]["margin"]
        assert judged["declared_by"] == "declared in the suite"
        assert judged["verdict"]["outcome"] == "equivalent"
        assert judged["verdict"]["margin"] == pytest.approx(0.6)
        sentence = "Margin (declared in the suite): Equivalent within ±60.0 points: 90 % interval"
        assert sentence in text(found)
        assert sentence in page(found).replace("\\", "")
        assert sentence in html_page(found, drawn)
        assert "margin-not-declared" not in ids(runs)

    def test_a_margin_belongs_to_its_contrast(self, runs: Path) -> None:
        change(runs / SUITE, contrast={"treatment": "arm 0", "control": "arm 1", "margin": 60.0})
        assert examined(runs, control="arm 2")[0]["primary"]["margin"] is None
        other = finding(runs, "margin-not-declared", control="arm 2", margin=60)
        assert "none was declared before the runs" in other["sentence"]

    def test_another_margin_is_named(self, runs: Path) -> None:
        change(runs / SUITE, contrast={"treatment": "arm 0", "control": "arm 1", "margin": 1.0})
        found = finding(runs, "margin-not-declared", margin=60)
        assert found["numbers"] == {"declared": 1.0, "margin": 60.0}
        assert "but 1 points were declared" in found["sentence"]
        assert examined(runs, margin=60)[0]["primary"]["margin"]["declared_by"] == "--margin"
        assert "margin-not-declared" not in ids(runs, margin=1.0)

    def test_without_a_margin_nothing_is_said_of_one(self, runs: Path) -> None:
        found, _ = examined(runs)
        assert found["primary"]["margin"] is None
        assert "argin (" not in text(found)
