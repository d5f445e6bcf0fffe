import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from properties import examples
from reports import page, report, tables, text
from schemabank.common.errors import InputError
from schemabank.report.command import Question

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "results" / "published" / "gsm8k.csv"
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def schemabank(program: Callable[[str], Program]) -> Program:
    return program("report")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_text("arm,epochs,seed,score\nnew,,1,0.5\nnew,,2,0.6\nlora,,1,0.1\nlora,,2,0.3\n")
    return path


def test_json_alone(schemabank: Program) -> None:
    code, out, err = schemabank(TABLE, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["claims_file"] == "gsm8k.claims.csv"
    assert (found["treatment"], found["control"]) == ("schemabank", "lora")


def test_tables_warnings_and_claims(schemabank: Program) -> None:
    code, out, _ = schemabank(TABLE)
    assert code == 0
    assert "treatment against control: differences" in out
    assert "verdict: schemabank against lora, mean over epochs" in out
    assert "- identical-rows: lora has" in out
    assert "claims do not follow\n- sd, lora, epochs 4, printed 1.3%" in out


def test_options_reach_the_report(schemabank: Program, tmp_path: Path) -> None:
    code, out, _ = schemabank(
        TABLE, "--treatment", "lora", "--control", "schemabank", "--primary", "6", "--json",
        "--test-size", "1319", "--claims", _claims(tmp_path),
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["primary"]["verdict"]["outcome"] == "worse"
    assert found["primary"]["contrast"] == "epochs 6"
    assert "subset-of-test" in {warning["id"] for warning in found["warnings"]}
    assert [claim["follows"] for claim in found["claims"]] == [True]


def _claims(folder: Path) -> Path:
    path = folder / "other.csv"
    path.write_text("statistic,arm,epochs,seed,value,where\nmean,lora,2,,3.45%,here\n")
    return path


def test_a_folder_is_written_once(schemabank: Program, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    assert schemabank(small, "--out", out)[0] == 0
    figures = {"differences.png", "differences.svg", "means.png", "means.svg"}
    pages = {"report.html", "report.json", "report.md"}
    assert {path.name for path in out.iterdir()} == pages | figures
    found = json.loads((out / "report.json").read_text())
    assert found == report(small, Question())
    assert (out / "report.md").read_text() == page(found)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, err = schemabank(small, "--out", out)
    assert code == 2
    assert "exists and is not overwritten" in err
    assert schemabank(small, "--out", tmp_path / "again")[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--primary", "6"], "--primary '6'"),
        (["--control", "base"], "arm 'base' has no runs"),
        (["--claims", "missing.csv"], "cannot read 'missing.csv'"),
    ],
)
def test_bad_input_ends_with_two_and_writes_nothing(
    schemabank: Program, small: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    code, out, err = schemabank(small, *options, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_claims_none_are_shown(small: Path) -> None:
    found = report(small, Question())
    assert (found["claims_file"], found["claims"]) == (None, [])
    assert "claims" not in text(found)
    assert "claims" not in page(found)


def test_one_run_an_arm_is_laid_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arm,epochs,seed,score\nnew,,1,0.5\nlora,,2,0\n")
    found = report(path, Question())
    assert found["pooled"]["paired"] is None
    assert len(tables(found)) == 4
    assert "No verdict: +50.00 points; 1 seed is too few, a verdict takes 4." in page(found)


def test_names_are_text_on_the_page_and_in_the_terminal(
    schemabank: Program, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    name = "[red]<script>|*x*"
    path.write_text(f"arm,epochs,seed,score\n{name},,1,0.5\n{name},,2,0.6\nlora,,1,0\nlora,,2,0\n")
    assert name in schemabank(path)[1]
    shown = page(report(path, Question()))
    assert "<script>" not in shown
    assert r"\[red\]\<script\>\|\*x\*" in shown


RUNS = st.dictionaries(
    st.tuples(st.sampled_from(["lora", "new"]), st.sampled_from(["", "2", "4"]), st.integers(1, 4)),
    st.tuples(st.integers(0, 5), st.sampled_from(["", "5", "10"])),
    min_size=1,
)


@settings(examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=RUNS, reference=st.sampled_from(["", "0", "1", "0.4"]))
def test_any_table_is_laid_out_or_refused(
    tmp_path: Path, runs: dict[tuple[str, str, int], tuple[int, str]], reference: str
) -> None:
    rows = [f"{a},{e},{s},{k / 5},{n}" for (a, e, s), (k, n) in runs.items()]
    rows += [f"six,,,{reference},5"] if reference else []
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["arm,epochs,seed,score,n_items", *rows, ""]))
    try:
        found = report(path, Question(test_size=10))
    except InputError:
        return
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert page(found)
    assert text(found)
