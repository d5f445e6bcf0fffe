"""The published GSM8K table: its report, and the pages that show it."""

import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from reports import examined, page, typed
from schemabank.report.command import Question
from schemabank.report.contents import warning_lines
from schemabank.report.page import listed
from schemabank.report.sections import claims

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("SCHEMABANK_DATA", ROOT.parent / "shared" / "data"))
TEST = DATA / "gsm8k" / "test.jsonl.gz"
TABLE = ROOT / "results" / "published" / "gsm8k.csv"
DOCUMENT = ROOT.parent / "shared" / "reference" / "gsm8k_validation_results.md"
LORA = np.array([[2.8, 4.6, 2.4, 4], [2.2, 5.2, 2.4, 2.8], [3.4, 5.6, 2, 4], [3, 4.8, 2.4, 2.2]])
LORA = np.vstack([LORA, LORA[1]]) / 100
BANK = np.array([[6.2, 5.6, 11.2, 1.4], [13.8, 6.6, 14.4, 8.6], [10.8, 13.2, 12.6, 10.6]])
BANK = np.vstack([BANK, [9.2, 11.6, 8.4, 9.2], [8.2, 9, 10, 11.2]]) / 100
EPOCHS = ["2", "4", "6", "8", "10"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return examined(TABLE, Question(test_size=1319))[0]


def test_the_constant_answer_is_right_so_often() -> None:
    if not TEST.is_file():
        pytest.skip(f"no GSM8K in {DATA}")
    with gzip.open(TEST, "rt", encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines]
    assert len(answers) == 1319
    assert Counter(answers[:500]).most_common(1) == [("6", 18)]
    assert 18 / 500 == 0.036


def test_the_rows_are_the_documents() -> None:
    if not DOCUMENT.is_file():
        pytest.skip("no document beside this checkout")
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) +" + r"\| ([\d.]+)% +" * 4 + r"\| [\d.]+%", text, re.MULTILINE)
    printed = [
        (arm, epochs, seed, float(score))
        for arm, own in (("lora", rows[:5]), ("schemabank", rows[5:]))
        for epochs, *scores in own
        for seed, score in zip(("42", "123", "456", "789"), scores, strict=True)
    ]
    found = [line.split(",") for line in TABLE.read_text(encoding="utf-8").splitlines()[1:41]]
    assert [(a, e, s, round(float(x) * 100, 6)) for a, e, s, x, _ in found] == printed
    assert len(printed) == 40


def test_every_claim_is_printed_in_the_document(report: dict[str, Any]) -> None:
    if not DOCUMENT.is_file():
        pytest.skip("no document beside this checkout")
    text = DOCUMENT.read_text(encoding="utf-8")
    in_words = {"lower", "every", "difference", "narrower"}
    figures = [c for c in report["claims"] if c["statistic"].partition("_")[0] not in in_words]
    for claim in figures:
        for part in claim["value"].removesuffix(" minutes").removesuffix(" hours").split(", "):
            assert part in text, claim


def test_figures_are_scipys(report: dict[str, Any]) -> None:
    by_epochs = {c["epochs"]: c for c in report["contrasts"]}
    assert list(by_epochs) == EPOCHS
    for epochs, a, b in zip(EPOCHS, BANK, LORA, strict=True):
        found = by_epochs[epochs]
        paired = stats.ttest_rel(a, b)
        welch = stats.ttest_ind(a, b, equal_var=False)
        assert found["paired"]["difference"]["p"] == pytest.approx(paired.pvalue)
        assert found["welch"]["difference"]["p"] == pytest.approx(welch.pvalue)
        assert found["paired"]["sign_flip"]["floor"] == 0.125
        assert found["welch"]["label_permutation"]["floor"] == pytest.approx(2 / 70)
        pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        assert found["welch"]["g"]["raw"] == pytest.approx((a.mean() - b.mean()) / pooled)
        assert found["paired"]["d_z"]["raw"] == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    primary = report["primary"]["verdict"]
    assert primary["p"] == pytest.approx(stats.ttest_rel(BANK.mean(0), LORA.mean(0)).pvalue)
    assert primary["difference"] == pytest.approx(0.0627)
    ratios = [row["ratio"] for row in report["peaks"]["seeds"]]
    assert ratios == pytest.approx([13.8 / 3.4, 13.2 / 5.6, 6, 2.8])


def test_what_a_reviewer_would_raise(report: dict[str, Any]) -> None:
    found = {(w["id"], w["numbers"].get("arm")): w for w in report["warnings"]}
    assert list(found) == [
        ("identical-rows", "lora"),
        ("not-above-reference", "lora"),
        ("not-above-reference", "schemabank"),
        ("few-seeds", None),
        ("selection-on-test", None),
        ("subset-of-test", None),
        ("lower-variance-unsupported", None),
    ]
    assert found["identical-rows", "lora"]["numbers"]["epochs"] == ["4", "10"]
    assert found["few-seeds", None]["numbers"]["floor"] == 0.125
    lora = found["not-above-reference", "lora"]["numbers"]["references"][0]["found"]
    assert [at["epochs"] for at in lora] == [*EPOCHS, None]
    assert lora[-1]["num_runs_above"] == 0
    bank = found["not-above-reference", "schemabank"]["numbers"]["references"][0]["found"]
    assert [at["epochs"] for at in bank] == ["2"]


def test_every_misprint_is_found(report: dict[str, Any]) -> None:
    wrong = {(c["statistic"], c["arm"], *c["epochs"]) for c in report["claims"] if not c["follows"]}
    spreads = {claim for claim in wrong if claim[0] in ("sd", "cv")}
    assert spreads == {
        ("sd", "lora", "4"),
        ("sd", "lora", "8"),
        ("sd", "lora", "10"),
        ("sd", "schemabank", "4"),
        ("sd", "schemabank", "10"),
        ("cv", "lora", "10"),
        ("cv", "schemabank", "10"),
    }
    right = {c["statistic"] for c in report["claims"] if c["follows"]}
    assert not {claim[0] for claim in wrong} & {"mean", "ratio_of_means", "peak", "peak_ratio"}
    assert {"mean", "ratio_of_means", "peak", "peak_ratio", "sd", "cv", "cohens_d"} <= right
    assert {"lower_sd", "lower_cv", "minutes_of_steps", "mean_epochs", "always_worst_seed"} <= {
        claim[0] for claim in wrong
    }


def test_the_page_shows_the_report(report: dict[str, Any]) -> None:
    found = typed(report)
    docs = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    for what, lines in (("warnings", warning_lines(found)), ("claims", claims.lines(found.claims))):
        shown = docs.partition(f"<!-- report {what}: results/published/gsm8k.csv -->\n")[2]
        assert shown.startswith(listed(lines) + "\n")


def test_json_and_bytes(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    again = examined(TABLE, Question(test_size=1319))[0]
    assert json.dumps(again) == json.dumps(report)
    assert page(again) == page(report)
