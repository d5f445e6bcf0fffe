"""Reports on folders of runs: what is read, compared, left out and warned of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats as scipy_stats
from typer.testing import CliRunner

import reports
from reports import figures, html_page, page, report, tables, text
from schemabank import stats
from schemabank.cli import app
from schemabank.errors import InputError
from schemabank.files import read_json
from schemabank.itemscores import SCORES, load_item_scores
from schemabank.peftcheck import FIELD, PeftCheck
from schemabank.report.command import HTML, JSON, PAGE, SAMPLES, Question
from schemabank.report.reading.runs import read_runs
from schemabank.rundir import CONFIG, RESULT, SUITE
from schemabank.writing import write_json
from tools import BENCHMARKS, load_tool

ROOT = Path(__file__).parent.parent.parent
GENERATOR = load_tool(BENCHMARKS / "report_scale.py")
SEEDS, ITEMS = 4, 60
Json = dict[str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "runs"
    GENERATOR.write_runs(folder, num_seeds=SEEDS, num_items=ITEMS, full_seeds=SEEDS)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "runs"))


def examined(folder: Path, **asked: str | int | None) -> tuple[Json, list[Json]]:
    return reports.examined(folder, Question(**asked))  # type: ignore[arg-type]


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


def rescore(folder: Path, num_correct: int) -> None:
    """Let a run answer so many items right, in all of its files."""
    path = folder / "predictions.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(found):
        row["scores"]["correct"] = float(number < num_correct)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / SCORES).unlink(missing_ok=True)
    change_group(folder, correct=num_correct / ITEMS)


def fail(folder: Path, reason: str = "out of memory", times: int = 1) -> None:
    """Let a run have failed instead."""
    for number in range(1, times + 1):
        aside = folder.with_name(f"{folder.name}.unfinished-{number}")
        aside.mkdir()
        write_json(aside / "failure.json", {"failure": f"{reason} {number}"})
    shutil.rmtree(folder)


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
    primary = examined(runs)[0]["primary"]
    judged = stats.verdict(expected)
    assert primary["test"] == "crossed"
    assert primary["verdict"]["outcome"] == judged.outcome
    assert primary["verdict"]["p"] == pytest.approx(judged.p)
    assert primary["verdict"]["interval"] == pytest.approx(judged.interval)
    over_seeds = stats.verdict(stats.paired_difference(*(m.mean(axis=1) for m in matrices)))
    assert primary["over_seeds"]["p"] == pytest.approx(over_seeds.p)
    assert (found["num_items"], found["num_seeds"], len(found["mcnemar"])) == (ITEMS, SEEDS, 8)
    one = found["mcnemar"][0]
    pair = [
        load_item_scores(runs / row["run_id"], "correct").scores
        for arm in ("arm 0", "arm 1")
        for row in rows(runs, arm, 1)
        if row["seed"] == one["seed"]
    ]
    assert one["only_treatment"] == int(((pair[0] == 1) & (pair[1] == 0)).sum())


def in_parts(runs: Path, *names: str) -> None:
    """Deal the items of all runs to parts of the split."""
    for result in runs.glob(f"*/{RESULT}"):
        path = result.with_name("predictions.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(found):
            row["group"] = names[number % len(names)]
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        result.with_name(SCORES).unlink(missing_ok=True)
        old: Any = read_json(result)["groups"]
        groups = {}
        for name in names:
            own = [row["scores"]["correct"] for row in found if row["group"] == name]
            mean = sum(own) / len(own)
            groups[name] = {**old["all"], "num_items": len(own), "correct": mean}
        change(result, groups=groups)


def test_parts_of_the_split_are_a_family(runs: Path) -> None:
    names = [f"part {n}" for n in range(5)]
    in_parts(runs, *names)
    found, _ = examined(runs, group="part 2")
    parts = found["groups"]
    assert [row["group"] for row in parts] == names
    adjusted = stats.holm([row["p"] for row in parts])
    assert [row["p_holm"] for row in parts] == pytest.approx(adjusted)
    assert all(row["p_holm"] <= 0.05 for row in parts if row["outcome"] in {"better", "worse"})
    own = parts[2]
    assert own["p"] == pytest.approx(found["primary"]["verdict"]["p"])
    assert own["difference"] == pytest.approx(found["primary"]["verdict"]["difference"])
    assert own["num_items"] == ITEMS / 5 == found["items"]["num_items"]


CALLED = ("better", "worse", "no difference detected")


def outcomes(report: Json) -> list[str]:
    """Every outcome that a report's contents hold."""
    places = [report["primary"]["verdict"], report["primary"]["over_seeds"]]
    places += [report["pooled"]["verdict"], *(c["verdict"] for c in report["contrasts"])]
    return [place["outcome"] for place in [*places, *report["groups"], *report["others"]]]


def test_two_seeds_give_no_verdict_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    GENERATOR.write_runs(folder, num_seeds=2, num_items=48, full_seeds=2)
    in_parts(folder, "seen", "held out")
    found, drawn = examined(folder)
    assert set(outcomes(found)) == {"no verdict"}
    assert found["items"]["crossed"]["interval"] is not None
    needed = "2 seeds are too few, a verdict takes 4."
    headline = "Fewer than 4 seeds give no verdict."
    assert needed in text(found)
    for shown in (page(found), html_page(found, drawn)):
        assert needed in shown
        assert headline in shown
        assert not any(f">{word}<" in shown or f"| {word} |" in shown for word in CALLED)


def test_all_places_with_a_verdict_agree(runs: Path) -> None:
    """Each says what the rule makes of its own figures, and texts say what the JSON says."""
    in_parts(runs, "seen", "held out")
    found, drawn = examined(runs)
    own = [found["pooled"], *found["contrasts"]]
    for contrast in own:
        shown = contrast["crossed"]
        p = shown["difference"]["p"] if contrast["epochs"] is None else shown["p_holm"]
        assert contrast["test"] == "crossed"
        assert contrast["verdict"]["p"] == p
        assert contrast["verdict"]["interval"] == shown["difference"]["interval"]
    assert found["primary"]["verdict"] == found["pooled"]["verdict"]
    places = [c["verdict"] | {"p_holm": c["verdict"]["p"]} for c in own]
    for place in [*places, *found["groups"], *found["others"]]:
        low, high = place["interval"]
        detected = place["p_holm"] <= 0.05 and not low <= 0 <= high
        expected = ("better" if low > 0 else "worse") if detected else "no difference detected"
        assert place["outcome"] == expected
        assert f"{100 * low:+.2f} to {100 * high:+.2f}" in place.get("sentence", "")
    verdict = found["primary"]["verdict"]
    for shown in (page(found), html_page(found, drawn), text(found)):
        assert verdict["sentence"] in shown.replace("&#x27;", "'")
    first = page(found).split("**")[1]
    assert first.lower().startswith(verdict["outcome"])
    assert first.endswith(f"{SEEDS} seeds and {ITEMS // 2} items, paired.")


def test_a_suite_of_other_seeds_is_compared_over_seeds_alone(runs: Path) -> None:
    listed: Any = read_json(runs / SUITE)["runs"]
    for row in listed:
        row["seed"] += 100 * (row["arm"] == "arm 1")
    change(runs / SUITE, runs=listed)
    found, _ = examined(runs)
    assert (found["primary"]["test"], found["items"]) == ("welch", None)
    assert found["primary"]["over_seeds"] is None
    assert "not paired." in page(found).split("**")[1]


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
            rescore(folder, round(base * ITEMS) + (n + int(arm[-1])) % 3)
            among = 0.6 + 0.01 * ((n + len(arm) + int(arm[-1])) % 3)
            change_group(folder, correct_among_ended=among, ended_ratio=base)
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


def test_skipped_steps_of_compared_runs_are_named(runs: Path) -> None:
    assert "skipped-steps" not in ids(runs)
    (first, *_), (second, *_) = rows(runs, "arm 1", 2), rows(runs, "arm 2", 1)
    for row, skipped in ((first, 3), (second, 1)):
        result = read_json(runs / row["run_id"] / RESULT)
        training: Any = result["training"]
        training["num_skipped_steps"] = skipped
        write_json(runs / row["run_id"] / RESULT, result)
    found = finding(runs, "skipped-steps")
    assert {run: skips[0] for run, skips in found["numbers"]["runs"].items()} == {
        first["run_id"]: 3,
        second["run_id"]: 1,
    }
    assert f" in {first['run_id']}" in found["sentence"]
    assert "made fewer updates" in found["sentence"]


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


def test_untouched_models_with_trimmed_prompts_are_named(runs: Path) -> None:
    assert "trimmed-prompts" not in ids(runs)
    row = rows(runs, "arm 0", 1)[0]
    change(runs / row["run_id"] / RESULT, prompt_form="trimmed")
    found = finding(runs, "trimmed-prompts")
    assert found["numbers"]["arms"] == ["arm 0"]
    assert "Prompts of arm 0 lack the white space at their end" in found["sentence"]


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
        | {"learning_rate": 2.0, "at_edge": at_edge, "best_score_factor": 1.0}
        for arm in seeds
    ]
    kept = [row for row in read_json(runs / SUITE)["runs"] if row["arm"] < "arm 8"]  # type: ignore[attr-defined]
    tuning = {"split": "validation", "seeds": [], "factors": [], "runs": tries, "chosen": chosen}
    change(runs / SUITE, runs=kept, tuning=tuning)


def test_learning_rates_that_were_tried(runs: Path) -> None:
    assert "learning-rates-not-tuned" in ids(runs)
    tuned(runs, {"arm 0": 2, "arm 1": 2}, at_edge=False)
    found, _ = examined(runs)
    marks = [(r["arm"], r["learning_rate"], r["chosen"], r["best_score"]) for r in found["rates"]]
    assert marks == [
        ("arm 0", 1.0, False, True),
        ("arm 0", 2.0, True, False),
        ("arm 1", 1.0, False, True),
        ("arm 1", 2.0, True, False),
    ]
    _, _, rows = next(table for table in tables(found) if table[0] == "learning rates tried")
    assert [row[-1] for row in rows] == ["best score", "chosen"] * 2
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


def test_the_command_writes_all_of_it_and_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        done = CliRunner().invoke(app, ["report", str(runs), "--out", str(out)])
        assert done.exit_code == 0, done.output
    names = [{p.name: p.read_bytes() for p in out.iterdir()} for out in outs]
    assert names[0] == names[1]
    assert {JSON, PAGE, HTML, SAMPLES} <= names[0].keys()
    assert json.loads(names[0][JSON])["metric"] == "correct"


def test_a_failed_run_of_a_folder_without_a_suite_is_named(runs: Path) -> None:
    (runs / SUITE).unlink()
    failed = next(runs.iterdir())
    fail(failed)
    assert [left.run for left in read_runs(runs).failed] == [failed.name]


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


def test_a_result_that_its_items_do_not_give_is_refused(runs: Path) -> None:
    change_group(runs / rows(runs, "arm 0")[0]["run_id"], correct=0.987)
    with pytest.raises(InputError, match=r"0\.987 in its result, but"):
        examined(runs)


def keep_rows(runs: Path, keep: Callable[[str, int, int], bool]) -> None:
    """Leave some runs in the suite, by arm, epochs and seed."""
    kept = [
        row
        for row in read_json(runs / SUITE)["runs"]  # type: ignore[attr-defined]
        if keep(row["arm"], row["settings"]["train.num_train_epochs"], row["seed"])
    ]
    change(runs / SUITE, runs=kept)


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


def test_form_is_looked_at_where_the_contrast_is(runs: Path) -> None:
    """At setting 2 all that ended scores alike; at setting 1 it does not."""
    for arm, base in (("arm 0", 0.6), ("arm 1", 0.3)):
        for epochs in (1, 2):
            for n, row in enumerate(rows(runs, arm, epochs)):
                rescore(runs / row["run_id"], round(base * ITEMS) + (n + int(arm[-1])) % 3)
                among = 0.6 + 0.01 * ((n + int(arm[-1])) % 3) if epochs == 2 else base + 0.001 * n
                change_group(runs / row["run_id"], correct_among_ended=among, ended_ratio=base)
    assert "format-explains-difference" in ids(runs, primary="2")
    for row in rows(runs, "arm 0", 1):
        folder = runs / row["run_id"]
        change_group(folder, correct_among_ended=0.6 + 0.001 * row["seed"] ** 2)
    assert "format-explains-difference" not in ids(runs, primary="1")


def test_learning_rates_that_differ_are_named(runs: Path) -> None:
    for row in rows(runs, "arm 1"):
        path = runs / row["run_id"] / CONFIG
        config = yaml.safe_load(path.read_text())
        config["train"]["learning_rate"] = 0.5
        path.write_text(yaml.safe_dump(config))
    sentence = finding(runs, "learning-rates-not-tuned")["sentence"]
    assert "0.001 for arm 0 and 0.5 for arm 1" in sentence


def test_other_conditions(runs: Path) -> None:
    assert "other-conditions" not in ids(runs)
    for row in rows(runs, "arm 1"):
        change(runs / row["run_id"] / RESULT, dtype="float32")
    assert "dtype bfloat16 and float32" in finding(runs, "other-conditions")["sentence"]


def test_completions_that_were_not_kept(runs: Path) -> None:
    for path in runs.glob("*/predictions.jsonl"):
        path.unlink()
    found, shown = examined(runs)
    assert (shown, found["samples_of"]["without_predictions"]) == ([], 8 * 3)


def test_samples_without_a_common_seed(runs: Path) -> None:
    manifest: Any = read_json(runs / SUITE)
    for row in manifest["runs"]:
        row["seed"] += 100 * (row["arm"] == "arm 1")
    write_json(runs / SUITE, manifest)
    found, shown = examined(runs)
    assert {sample["flip"] for sample in shown} == {"unpaired"}
    assert found["items"] is None


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


def test_half_a_surrogate_in_a_completion(runs: Path, tmp_path: Path) -> None:
    path = runs / rows(runs, "arm 0", 2)[0]["run_id"] / "predictions.jsonl"
    text = path.read_text()
    assert "add 1 to 0" in text
    path.write_text(text.replace("add 1 to 0", "\\ud83d", 1))
    report(runs, Question(), tmp_path / "out")


def test_an_adapter_that_is_not_what_was_trained_is_the_first_finding(runs: Path) -> None:
    assert "adapter-not-as-trained" not in ids(runs)
    checks = [PeftCheck(1e-15, 1e-13), PeftCheck(2e-4, 1e-13), PeftCheck(None, None, "no file")]
    names = [row["run_id"] for row in rows(runs, "arm 0", 1)]
    for name, check in zip(names, checks, strict=False):
        result = read_json(runs / name / RESULT)
        write_json(runs / name / RESULT, {**result, FIELD: check.row()})
    assert ids(runs)[0] == "adapter-not-as-trained"
    found = finding(runs, "adapter-not-as-trained")
    assert found["numbers"]["runs"] == {
        n: c.row() for n, c in zip(names[1:3], checks[1:], strict=True)
    }
    assert "2 runs are not what was trained" in found["sentence"]
    assert "the largest relative difference is 2.0e-04, and rounding explains" in found["sentence"]
    assert "could not be compared with its run in stock PEFT: no file" in found["sentence"]


def test_the_files_of_a_report_hold_all_that_its_pages_show(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report(runs, Question(), out)
    found = read_json(out / JSON)
    drawn = [json.loads(line) for line in (out / SAMPLES).read_text().splitlines()]
    assert (out / PAGE).read_text() == page(found)
    assert (out / HTML).read_text() == html_page(found, drawn)
    assert {path.stem for path in out.glob("*.svg")} == set(figures(found))
