"""Reports on folders of runs: what is read, compared, left out and warned of."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from schemabank import stats
from schemabank.cli import app
from schemabank.errors import InputError
from schemabank.itemscores import SCORES, load_item_scores
from schemabank.report.command import HTML, JSON, PAGE, SAMPLES, Question, report
from schemabank.report.ofruns import examine_runs
from schemabank.report.runs import read_runs
from schemabank.rundir import CONFIG, RESULT, SUITE, read_json, write_json

ROOT = Path(__file__).parent.parent.parent
SEEDS, ITEMS = 4, 60
Json = dict[str, Any]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "report_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "runs"
    _generator().write_runs(folder, num_seeds=SEEDS, num_items=ITEMS, full_seeds=SEEDS)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "runs"))


def examined(folder: Path, **asked: str | int | None) -> tuple[Json, list[Json]]:
    keys = ("treatment", "control", "primary", "group", "test_size")
    return examine_runs(folder, **{key: asked.get(key) for key in keys})  # type: ignore[arg-type]


def ids(folder: Path, **asked: str | int | None) -> list[str]:
    return [found["id"] for found in examined(folder, **asked)[0]["warnings"]]


def finding(folder: Path, rule: str, **asked: str | int | None) -> Json:
    (found,) = [w for w in examined(folder, **asked)[0]["warnings"] if w["id"] == rule]
    return dict(found)


def rows(folder: Path, arm: str, epochs: int | None = None) -> list[Json]:
    return [
        row
        for row in read_json(folder / SUITE)["runs"]  # type: ignore[attr-defined]
        if row["arm"] == arm and epochs in (None, row["settings"]["train.num_train_epochs"])
    ]


def change(path: Path, **values: object) -> None:
    write_json(path, {**read_json(path), **values})


def change_group(folder: Path, **values: object) -> None:
    result = read_json(folder / RESULT)
    groups: Any = result["groups"]
    groups["all"] |= values
    write_json(folder / RESULT, result)


def scores(folder: Path, arm: str, epochs: int) -> list[float]:
    """By seed, counted from the predictions."""
    found = {}
    for row in rows(folder, arm, epochs):
        text = (folder / row["run_id"] / "predictions.jsonl").read_text()
        right = [json.loads(line)["scores"]["correct"] for line in text.splitlines()]
        found[row["seed"]] = sum(right) / len(right)
    return [found[seed] for seed in sorted(found)]


def test_the_figures_are_those_of_the_predictions(runs: Path) -> None:
    found, _ = examined(runs)
    first, second = ([scores(runs, arm, e) for e in (1, 2)] for arm in ("arm 0", "arm 1"))
    a, b = np.mean(first, axis=0), np.mean(second, axis=0)
    pooled = found["pooled"]["paired"]["difference"]
    assert pooled["mean"] == pytest.approx(np.mean(a - b))
    assert pooled["p"] == pytest.approx(float(scipy_stats.ttest_rel(a, b).pvalue))
    at = {(row["arm"], row["epochs"]): row["scores"] for row in found["arms"]}
    assert list(at["arm 1", "2"].values()) == pytest.approx(second[1])
    assert (found["treatment"], found["control"], found["setting"]) == (
        "arm 0",
        "arm 1",
        "train.num_train_epochs",
    )


def test_items_are_compared_over_seeds_and_items_at_once(runs: Path) -> None:
    found = examined(runs)[0]["items"]
    matrices = []
    for arm in ("arm 0", "arm 1"):
        by_setting = [
            [
                load_item_scores(runs / row["run_id"], "correct").scores
                for row in sorted(rows(runs, arm, epochs), key=lambda row: row["seed"])
            ]
            for epochs in (1, 2)
        ]
        matrices.append(np.mean(np.array(by_setting, np.float64), axis=0))
    expected = stats.crossed_difference(*matrices)
    assert found["crossed"]["mean"] == pytest.approx(expected.mean)
    assert found["crossed"]["interval"] == pytest.approx(expected.interval)
    assert (found["num_items"], found["num_seeds"], len(found["mcnemar"])) == (ITEMS, SEEDS, 8)
    one = found["mcnemar"][0]
    pair = [
        load_item_scores(runs / row["run_id"], "correct").scores
        for arm in ("arm 0", "arm 1")
        for row in rows(runs, arm, 1)
        if row["seed"] == one["seed"]
    ]
    assert one["only_treatment"] == int(((pair[0] == 1) & (pair[1] == 0)).sum())


def test_scores_of_a_run_without_the_file_come_from_its_predictions(runs: Path) -> None:
    whole, _ = examined(runs)
    for path in runs.glob(f"*/{SCORES}"):
        path.unlink()
    assert examined(runs)[0] == whole


def test_other_arms_are_a_family_of_their_own(runs: Path) -> None:
    found, _ = examined(runs)
    assert [row["arm"] for row in found["others"]] == [f"arm {n}" for n in range(2, 10)]
    assert stats.holm([row["p"] for row in found["others"]]) == pytest.approx(
        [row["p_holm"] for row in found["others"]]
    )


def test_samples_show_what_flips(runs: Path) -> None:
    _, found = examined(runs)
    assert len(found) == ITEMS
    for sample in found:
        right = {(a["arm"], a["seed"]): a["score"] for a in sample["answers"]}
        pairs = [(right["arm 0", s], right["arm 1", s]) for _, s in right if ("arm 0", s) in right]
        gained, lost = (any(a > b for a, b in pairs), any(a < b for a, b in pairs))
        if gained or lost:
            expected = "mixed" if gained and lost else "gained" if gained else "lost"
        else:
            expected = {1: "both", 0: "neither"}.get(sum(a for a, _ in pairs) / len(pairs), "mixed")
        assert sample["flip"] == expected


def test_an_unfinished_a_failed_and_a_strange_run_are_named(runs: Path) -> None:
    gone, failed = (runs / row["run_id"] for row in rows(runs, "arm 5", 1)[:2])
    shutil.rmtree(gone)
    aside = failed.with_name(f"{failed.name}.unfinished-1")
    failed.rename(aside)
    (aside / RESULT).unlink()
    write_json(aside / "failure.json", {"failure": "out of memory"})
    shutil.copytree(runs / rows(runs, "arm 4")[0]["run_id"], runs / "stranger")
    found = examined(runs)[0]["provenance"]
    assert found["unfinished"] == [gone.name]
    assert found["failed"] == [{"run": failed.name, "reason": "out of memory"}]
    assert found["excluded"] == [{"run": "stranger", "reason": "not a run of this suite"}]
    assert {"failed-runs", "unfinished-runs"} <= set(ids(runs))


def test_a_run_of_another_split_is_excluded(runs: Path) -> None:
    odd = rows(runs, "arm 5", 1)[0]["run_id"]
    change(runs / odd / RESULT, split="validation")
    (left,) = examined(runs)[0]["provenance"]["excluded"]
    assert left["run"] == odd
    assert "validation" in left["reason"]


def test_runs_with_other_items_are_no_pair(runs: Path) -> None:
    row = rows(runs, "arm 1", 2)[0]
    path = runs / row["run_id"] / "predictions.jsonl"
    path.write_text(path.read_text().replace('"test-3"', '"test-x"'))
    (runs / row["run_id"] / SCORES).unlink()
    with pytest.raises(InputError, match="scored on other items"):
        examined(runs)


def test_form_alone_may_explain_a_difference(runs: Path) -> None:
    """The control's rest did not end; among what ended both score alike, give or take."""
    for arm, base in (("arm 0", 0.6), ("arm 1", 0.3)):
        for n, row in enumerate(rows(runs, arm)):
            folder = runs / row["run_id"]
            correct = round(base * ITEMS + (n + int(arm[-1])) % 3) / ITEMS
            among = 0.6 + 0.01 * ((n + len(arm) + int(arm[-1])) % 3)
            change_group(folder, correct=correct, correct_among_ended=among, ended_ratio=base)
    found = finding(runs, "format-explains-difference")
    assert found["numbers"]["among"] == "ended by themselves"
    for row in rows(runs, "arm 1"):
        change_group(runs / row["run_id"], correct_among_ended=0.3)
    assert "format-explains-difference" not in ids(runs)


def test_completions_at_the_limit(runs: Path) -> None:
    assert "completions-at-limit" not in ids(runs)
    for row in rows(runs, "arm 1", 2):
        change_group(runs / row["run_id"], length_limit_ratio=0.5)
    sentence = finding(runs, "completions-at-limit")["sentence"]
    assert "50% of arm 1's at 2" in sentence


def test_unequal_updates_and_other_settings(runs: Path) -> None:
    assert "unequal-updates" not in ids(runs)
    for row in rows(runs, "arm 1", 2):
        result = read_json(runs / row["run_id"] / RESULT)
        training: Any = result["training"]
        training["num_lora_updates"] = 7
        write_json(runs / row["run_id"] / RESULT, result)
    assert "200 and 7 at 2" in finding(runs, "unequal-updates")["sentence"]
    assert finding(runs, "other-settings")["numbers"]["settings"] == {"lora.r": ["1", "2"]}


def test_a_contrast_is_declared_asked_for_or_missing(runs: Path) -> None:
    assert not {"contrast-not-declared", "other-contrast"} & set(ids(runs))
    asked = {"treatment": "arm 2", "control": "arm 3"}
    assert "other-contrast" in ids(runs, **asked)
    change(runs / SUITE, contrast=None)
    assert "contrast-not-declared" in ids(runs, **asked)
    with pytest.raises(InputError, match="not clear: name two with --treatment"):
        examined(runs)


def test_a_limit_is_said(runs: Path) -> None:
    row = rows(runs, "arm 0", 1)[0]
    path = runs / row["run_id"] / CONFIG
    path.write_text(path.read_text().replace("  limit: null", "  limit: 60"))
    assert "eval.limit is 60" in finding(runs, "subset-of-split")["sentence"]


def tuned(runs: Path, seeds: dict[str, int], *, at_edge: bool) -> None:
    """Pretend that arms were tuned with the runs of arms 8 and 9."""
    spare = [row["run_id"] for arm in ("arm 8", "arm 9") for row in rows(runs, arm)]
    tries = [
        {"run_id": spare.pop(), "arm": arm, "seed": seed, "factor": factor, "learning_rate": factor}
        | {"settings": {"train.num_train_epochs": 1}}
        for arm, num in seeds.items()
        for factor in (1.0, 2.0)
        for seed in range(num)
    ]
    chosen = [
        {"arm": arm, "settings": {"train.num_train_epochs": 1}, "factor": 2.0}
        | {"learning_rate": 2.0, "at_edge": at_edge}
        for arm in seeds
    ]
    kept = [row for row in read_json(runs / SUITE)["runs"] if row["arm"] < "arm 8"]  # type: ignore[attr-defined]
    tuning = {"split": "validation", "seeds": [], "factors": [], "runs": tries, "chosen": chosen}
    change(runs / SUITE, runs=kept, tuning=tuning)


def test_learning_rates_that_were_tried(runs: Path) -> None:
    assert "learning-rates-not-tuned" in ids(runs)
    tuned(runs, {"arm 0": 2, "arm 1": 2}, at_edge=False)
    found, _ = examined(runs)
    assert [(r["arm"], r["learning_rate"], r["chosen"]) for r in found["rates"]] == [
        ("arm 0", 1.0, False),
        ("arm 0", 2.0, True),
        ("arm 1", 1.0, False),
        ("arm 1", 2.0, True),
    ]
    assert all(len(r["scores"]) == 2 and r["split"] == "validation" for r in found["rates"])
    said = {w["id"] for w in found["warnings"]}
    assert not said & {"learning-rates-not-tuned", "unequal-tuning", "rate-at-edge"}


def test_unequal_tuning_and_a_best_rate_at_the_edge(runs: Path) -> None:
    tuned(runs, {"arm 0": 3, "arm 1": 2}, at_edge=True)
    assert finding(runs, "unequal-tuning")["numbers"]["runs_by_arm"] == {"arm 0": 6, "arm 1": 4}
    assert ids(runs).count("rate-at-edge") == 2


def test_a_folder_without_a_suite_is_read_too(runs: Path) -> None:
    (runs / SUITE).unlink()
    for row in runs.glob("*"):
        text = (row / CONFIG).read_text()
        if "num_train_epochs: 2" in text or "  r: 1\n" not in text:
            shutil.rmtree(row)
    base = next(runs.iterdir())
    shutil.copytree(base, runs / "zero-shot")
    change(runs / "zero-shot" / RESULT, arm="base", training=None)
    found, _ = examined(runs)
    assert (found["treatment"], found["control"], found["setting"]) == ("lora", "base", "")
    assert found["pooled"]["paired"]["difference"]["mean"] == pytest.approx(
        found["pooled"]["treatment"]["mean"] - found["references"][0]["score"]
    )


def test_what_varies_in_a_folder_is_found(runs: Path) -> None:
    (runs / SUITE).unlink()
    found = read_runs(runs)
    assert found.setting == "lora.r, train.num_train_epochs"
    assert {run.setting for run in found.runs} == {
        f"{r}, {e}" for r in range(1, 11) for e in (1, 2)
    }


def test_bad_folders(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(InputError, match="holds no finished run"):
        read_runs(tmp_path)
    with pytest.raises(InputError, match="is a single run"):
        read_runs(runs / rows(runs, "arm 0")[0]["run_id"])
    with pytest.raises(InputError, match="--group 'seen': the runs share 'all'"):
        examined(runs, group="seen")
    with pytest.raises(InputError, match="--claims"):
        report(runs, Question(claims=tmp_path / "c.csv"))
    path = runs / rows(runs, "arm 0")[0]["run_id"] / SCORES
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot read the items' scores"):
        examined(runs)


def test_the_command_writes_all_of_it_and_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        done = CliRunner().invoke(app, ["report", str(runs), "--out", str(out)])
        assert done.exit_code == 0, done.output
    names = [{p.name: p.read_bytes() for p in out.iterdir()} for out in outs]
    assert names[0] == names[1]
    assert {JSON, PAGE, HTML, SAMPLES} <= names[0].keys()
    assert json.loads(names[0][JSON])["metric"] == "correct"
