"""What a reviewer would raise about training and decoding."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.report.warnings.training import OWN
from schemabank.runs.folder import CONFIG, RESULT, SUITE
from synthetic import ITEMS, change, change_group, examined, finding, ids, rescore, rows, tuned


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


def test_a_better_score_with_a_higher_loss_is_in_doubt(runs: Path) -> None:
    """Whichever arm has it; a lower loss that goes with the better score is as it should be."""
    for arm, base in (("arm 0", 0.6), ("arm 1", 0.3)):
        for n, row in enumerate(rows(runs, arm)):
            rescore(runs / row["run_id"], round(base * ITEMS) + (n + int(arm[-1])) % 3)

    def let_losses_be(first: float, second: float) -> None:
        for arm, loss in (("arm 0", first), ("arm 1", second)):
            for n, row in enumerate(rows(runs, arm)):
                change_group(runs / row["run_id"], gold_nll=loss + 0.01 * ((n + int(arm[-1])) % 3))

    let_losses_be(1.0, 2.0)
    assert "loss-disagrees" not in ids(runs)
    let_losses_be(2.0, 1.0)
    found = finding(runs, "loss-disagrees")
    assert abs(abs(found["numbers"]["difference"]["mean"]) - 1) < 0.1
    assert "form of the answers" in found["sentence"]
    let_losses_be(1.0, 1.0)
    assert "loss-disagrees" not in ids(runs)


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
    for row in rows(runs, "arm 1"):  # what makes an arm what it is
        with (runs / row["run_id"] / CONFIG).open("a", encoding="utf-8") as file:
            file.write("swap: {num_branches: 3}\n")
    assert finding(runs, "other-settings")["numbers"]["settings"] == {"lora.r": ["1", "2"]}


def test_an_average_that_one_arm_lacks_is_another_setting(runs: Path) -> None:
    """Both have it in their settings, as from a suite's defaults."""
    for arm in ("arm 0", "arm 1"):
        for row in rows(runs, arm):
            path = runs / row["run_id"] / CONFIG
            settings = yaml.safe_load(path.read_text())
            settings["average"] = {"kind": "bema", "lag": 7}
            path.write_text(yaml.safe_dump(settings))
    assert finding(runs, "other-settings")["numbers"]["settings"] == {"lora.r": ["1", "2"]}
    for row in rows(runs, "arm 1"):
        path = runs / row["run_id"] / CONFIG
        path.write_text(path.read_text().replace("arm: lora\n", "arm: swap\n"))
    found = finding(runs, "other-settings")
    assert found["numbers"]["settings"] == {
        "lora.r": ["1", "2"],
        "average.kind": ["bema", "none"],
        "average.lag": ["7", "10"],
    }
    assert "average.kind bema and none" in found["sentence"]


def test_what_one_method_alone_has_is_no_other_setting() -> None:
    assert {"bank", "tags", "curriculum", "coto", "experts", "shrink", "molf"} <= OWN
    assert not {"lora", "train", "average", "rescale", "distill", "task", "eval"} & OWN


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


def test_unequal_tuning_and_a_best_rate_at_the_edge(runs: Path) -> None:
    tuned(runs, {"arm 0": 3, "arm 1": 2}, at_edge=True)
    assert finding(runs, "unequal-tuning")["numbers"]["runs_by_arm"] == {"arm 0": 6, "arm 1": 4}
    assert ids(runs).count("rate-at-edge") == 2


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
