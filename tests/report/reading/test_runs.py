"""Folders of runs: what is read, compared and left out."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from reports import report
from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.report.command import Question
from schemabank.report.reading.runs import Left, read_runs
from schemabank.runs.folder import CONFIG, FAILURE, PARTIAL, RESULT, SUITE
from schemabank.runs.itemscores import SCORES
from synthetic import SEEDS, change, examined, fail, finding, ids, keep_rows, rows, scores, tuned


def test_an_unfinished_a_failed_and_a_strange_run_are_named(runs: Path) -> None:
    gone, failed = (runs / row["run_id"] for row in rows(runs, "arm 5", 1)[:2])
    shutil.rmtree(gone)
    fail(failed, times=2)
    shutil.copytree(runs / rows(runs, "arm 4")[0]["run_id"], runs / "stranger")
    found = examined(runs)[0]["provenance"]
    assert found["unfinished"] == [gone.name]
    assert found["failed"] == [{"run": failed.name, "reason": "out of memory 2"}]
    assert found["excluded"] == [{"run": "stranger", "reason": "not a run of this suite"}]
    assert {"failed-runs", "unfinished-runs", "excluded-runs"} <= set(ids(runs))


def test_a_run_of_another_split_is_excluded(runs: Path) -> None:
    odd = rows(runs, "arm 5", 1)[0]["run_id"]
    change(runs / odd / RESULT, split="validation")
    (left,) = examined(runs)[0]["provenance"]["excluded"]
    assert left["run"] == odd
    assert "validation" in left["reason"]


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
    assert found.names == ("lora.r", "train.num_train_epochs")
    assert {run.setting for run in found.runs} == {
        f"r={r} num_train_epochs={e}" for r in range(1, 11) for e in (1, 2)
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


def test_a_failed_run_of_a_folder_without_a_suite_is_named(runs: Path) -> None:
    (runs / SUITE).unlink()
    failed = next(runs.iterdir())
    fail(failed)
    assert [left.run for left in read_runs(runs).failed] == [failed.name]


def test_a_run_that_failed_in_its_evaluation_is_named_with_the_latest_reason(runs: Path) -> None:
    failed = next(path for path in runs.iterdir() if path.is_dir())
    fail(failed)
    kept = runs / PARTIAL.format(failed.name)
    kept.mkdir()
    write_json(kept / FAILURE, {"kind": "memory", "failure": "its training is kept"})
    (left,) = read_runs(runs).failed
    assert left == Left(failed.name, "its training is kept")


def test_the_reason_of_a_run_is_that_of_its_latest_failure(runs: Path) -> None:
    failed = next(path for path in runs.iterdir() if path.is_dir())
    fail(failed)
    for number in (2, 10):
        aside = failed.with_name(f"{failed.name}.unfinished-{number}")
        aside.mkdir(exist_ok=True)
        write_json(aside / FAILURE, {"kind": "disk", "failure": f"full {number}"})
    assert read_runs(runs).failed == (Left(failed.name, "full 10"),)


@pytest.mark.parametrize(
    ("torn", "said"),
    [
        ('{"kind": "memory", "fail', "failure.json is not valid JSON"),
        ("[1]", "failure.json' holds a list, allowed is a JSON object"),
        ('{"kind": "memory"}', "failure.json' names none"),
        ('{"failure": 3}', "failure.json' names none"),
        (r'{"failure": "\ud800"}', "failure.json' is no text"),
    ],
)
def test_a_failure_whose_reason_is_damaged_is_still_one(torn: str, said: str, runs: Path) -> None:
    failed = next(path for path in runs.iterdir() if path.is_dir())
    fail(failed)
    (file,) = runs.glob(f"{failed.name}.unfinished-*/{FAILURE}")
    file.write_text(torn)
    (left,) = examined(runs)[0]["provenance"]["failed"]
    assert left["run"] == failed.name
    assert left["reason"].startswith("its reason cannot be read (")
    assert said in left["reason"]


@pytest.mark.parametrize("listed", [True, False])
def test_where_all_runs_failed_the_reasons_are_said(listed: bool, runs: Path) -> None:
    places = sorted(path for path in runs.iterdir() if path.is_dir())
    for place in places[5:]:
        shutil.rmtree(place)
    for number, place in enumerate(places[:5]):
        fail(place)
        (file,) = runs.glob(f"{place.name}.unfinished-*/{FAILURE}")
        write_json(file, {"kind": "disk", "failure": f"reason {max(0, number - 1)}"})
    if not listed:
        (runs / SUITE).unlink()
    with pytest.raises(InputError) as caught:
        read_runs(runs)
    for words in (
        "holds no finished run, since 5 failed (2 x reason 0; 1 x reason 1; 1 x reason 2",
        "; and 1 more reasons): mend the cause",
    ):
        assert words in str(caught.value)


def test_a_failed_trial_is_no_failed_run(runs: Path) -> None:
    tuned(runs, {"arm 0": 2, "arm 1": 2}, at_edge=False)
    tuning: Any = read_json(runs / SUITE)["tuning"]
    fail(runs / tuning["runs"][0]["run_id"], "no finite gradient")
    found, _ = examined(runs)
    assert "failed-runs" not in {w["id"] for w in found["warnings"]}
    trials = found["provenance"]["failed_trials"]
    assert [row["reason"] for row in trials] == ["no finite gradient 1"]
    assert [row["failed"] for row in found["rates"]] == [1, 0, 0, 0]
    assert finding(runs, "unequal-tuning")["numbers"]["runs_by_arm"] == {"arm 0": 3, "arm 1": 4}


def test_a_base_model_as_the_control_is_no_arm_of_seeds(runs: Path) -> None:
    first = rows(runs, "arm 1", 1)[0]
    change(runs / first["run_id"] / RESULT, arm="base", training=None)
    keep_rows(
        runs, lambda arm, epochs, seed: arm != "arm 1" or (epochs, seed) == (1, first["seed"])
    )
    found, shown = examined(runs)
    assert "arm 1" not in {row["arm"] for row in found["arms"]}
    assert not [w for w in found["warnings"] if w["numbers"].get("arm") == "arm 1"]
    assert found["pooled"]["control"]["sd"] == 0
    assert len(found["items"]["mcnemar"]) == 2 * SEEDS
    assert {sample["flip"] for sample in shown} <= {"gained", "lost", "mixed", "both", "neither"}


def test_arms_without_a_common_setting(runs: Path) -> None:
    keep_rows(runs, lambda arm, epochs, _: (arm, epochs) not in {("arm 0", 1), ("arm 1", 2)})
    with pytest.raises(InputError, match="have no setting in common"):
        examined(runs)


def test_the_mean_over_all_is_the_contrasts(runs: Path) -> None:
    """The control lacks a setting, so that the treatment's mean leaves it out too."""
    keep_rows(runs, lambda arm, epochs, _: (arm, epochs) != ("arm 1", 2))
    found, _ = examined(runs)
    means = {(row["arm"], row["epochs"]): row["summary"]["mean"] for row in found["arms"]}
    assert means["arm 0", None] == means["arm 0", "1"]
    pairs = zip(scores(runs, "arm 0", 1), scores(runs, "arm 1", 1), strict=True)
    expected = {str(seed): pytest.approx(a - b) for seed, (a, b) in enumerate(pairs)}
    assert found["pooled"]["differences"] == expected


def test_the_declared_arm_stands_where_the_other_is_named(runs: Path) -> None:
    found, _ = examined(runs, treatment="arm 7")
    assert (found["treatment"], found["control"]) == ("arm 7", "arm 1")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (CONFIG, "a: [", "holds no settings"),
        (CONFIG, "", "holds no settings"),
        (RESULT, '{"arm": "lora"}', "lacks a usable"),
        ("cost.json", '{"runs_in_cohort": 0}', r"lacks a usable runs_in_cohort \(it is 0"),
        ("cost.json", '{"workers": 0}', r"lacks a usable workers \(it is 0, allowed is greater"),
        ("predictions.jsonl", '{"id": "test-0", "group": "all"}', "cannot read"),
        ("metrics.jsonl", '{"step": 1}', "is no log of a run"),
    ],
)
def test_malformed_files_are_named(runs: Path, name: str, text: str, words: str) -> None:
    epochs = 2 if name == "predictions.jsonl" else 1  # whose samples are shown
    (runs / rows(runs, "arm 0", epochs)[0]["run_id"] / name).write_text(text)
    with pytest.raises(InputError, match=words):
        examined(runs)


@pytest.mark.parametrize(
    ("name", "words"), [(None, "is no list of a suite's runs"), ("../x", "names of folders")]
)
def test_a_malformed_suite_is_named(runs: Path, name: str | None, words: str) -> None:
    row = rows(runs, "arm 0")[0]
    listed = [{**row, "run_id": name}] if name else [{"arm": "arm 0"}]
    write_json(runs / SUITE, {"contrast": None, "runs": listed})
    with pytest.raises(InputError, match=words):
        examined(runs)
