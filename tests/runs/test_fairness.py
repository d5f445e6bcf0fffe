"""What of a comparison was unequal is said in sentences, and only that."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemabank.cli import app
from schemabank.config.settings import RunConfig
from schemabank.config.train import THREE_STAGES, TrainSettings
from schemabank.runs.fairness import Trained, first_last, highest_rate, inequalities, trained
from tinyruns import Finished
from tinysuites import tiny

EQUAL = Trained("lora", "", "test", 1e-3, 150, 150, 1000)
ARMS = ("schemabank", "lora")
ROUTER_ALONE = THREE_STAGES[0].model_copy(update={"ratio": 1.0, "learning_rate": 0.5})


def against(*, tuned: bool = False, **changes: object) -> list[str]:
    """Plain LoRA and an arm that differs from it in this."""
    other = replace(EQUAL, arm="schemabank", **changes)  # type: ignore[arg-type]
    return inequalities([EQUAL, other], ARMS, tuned=tuned)


def test_equal_training_at_rates_that_were_chosen_is_not_worth_a_word() -> None:
    assert against(tuned=True) == []


def test_rates_that_were_not_tried_are_named_even_where_they_agree() -> None:
    (found,) = against()
    assert found.startswith("Learning rates were not tried for each arm (0.001 for schemabank and")
    (found,) = against(learning_rate=1e-4)
    assert "(0.0001 for schemabank and 0.001 for lora)" in found


def test_rates_that_vary_for_both_arms_on_the_test_split_are_chosen_there() -> None:
    runs = [replace(EQUAL, arm=a, learning_rate=r) for a in ARMS for r in (1e-3, 2e-3)]
    (found,) = inequalities(runs, ARMS, tuned=False)
    assert "is to choose on the test data" in found
    on_validation = [replace(run, split="validation") for run in runs]
    assert inequalities(on_validation, ARMS, tuned=False) == []


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_steps", 300, "different numbers of training steps: 300 and 150."),
        ("num_teacher_steps", 600, "numbers of training steps of teachers: 600 and 0."),
        ("num_lora_updates", 105, "different numbers of updates of LoRA: 105 and 150."),
        ("num_trained_parameters", 2500, "numbers of trained parameters: 2,500 and 1,000."),
    ],
)
def test_what_was_trained_more_or_oftener_is_named(name: str, value: int, sentence: str) -> None:
    (found,) = against(tuned=True, **{name: value})
    assert found.startswith("schemabank and lora have different numbers of ")
    assert found.endswith(sentence)


def test_settings_are_compared_with_their_like() -> None:
    runs = [
        replace(EQUAL, arm=arm, setting=setting, num_steps=steps)
        for arm in ARMS
        for setting, steps in (("2 epochs", 300), ("4 epochs", 600))
    ]
    assert inequalities(runs, ARMS, tuned=True) == []
    runs[1] = replace(runs[1], num_steps=700)
    (found,) = inequalities(runs, ARMS, tuned=True)
    assert found.endswith("700 and 600 at 4 epochs.")


def test_an_arm_that_trains_nothing_is_compared_with_none() -> None:
    assert inequalities([EQUAL], ("base", "lora"), tuned=False) == []
    assert trained(RunConfig(arm="base"), {"training": None, "split": "test"}) is None


def test_of_three_arms_each_is_compared_with_the_last_and_rates_are_named_once() -> None:
    one = replace(EQUAL, arm="one", num_steps=300)
    other = replace(EQUAL, arm="other", num_lora_updates=75)
    assert inequalities([EQUAL, one, other], first_last([EQUAL, one, other]), tuned=False) == [
        "Learning rates were not tried for each arm (0.001 for one and 0.001 for other and 0.001 "
        "for lora): an arm may lose because its rate suits it less.",
        "one and lora have different numbers of training steps: 300 and 150.",
        "other and lora have different numbers of updates of LoRA: 75 and 150.",
    ]


def test_an_arm_that_trains_nothing_leaves_the_others_to_be_compared() -> None:
    one = replace(EQUAL, arm="one", num_steps=300)
    found = inequalities([EQUAL, one], ["one", "base", "lora"], tuned=True)
    assert found == ["one and lora have different numbers of training steps: 300 and 150."]


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("contrast", [None, {"treatment": "schemabank", "control": "lora"}])
def test_a_suite_says_what_is_unequal_with_and_without_a_contrast(
    contrast: dict[str, str] | None, finished: Finished, tmp_path: Path
) -> None:
    arms = {"base": {}, "lora": {}, "schemabank": {}}
    seed = int(str((finished.lora.result or {})["seed"]))
    more = {} if contrast is None else {"contrast": contrast}
    path = tiny(finished, tmp_path / "s.yaml", arms=arms, seeds=[seed], grid={}, **more)
    shutil.copytree(finished.out, tmp_path / "runs")
    ended = CliRunner().invoke(app, ["suite", str(path), "--out", str(tmp_path / "runs")])
    assert ended.exit_code == 0, ended.stderr
    assert "reused" in ended.stderr
    said = [line for line in ended.stdout.splitlines() if line.startswith("unequal: ")]
    assert len(said) == 3
    assert "rates were not tried for each arm (0.01 for schemabank and 0.01 for lora)" in said[0]
    assert said[1].endswith("have different numbers of updates of LoRA: 13 and 18.")
    assert "trained parameters" in said[2]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RunConfig(arm="lora"), 1e-3),
        (RunConfig(arm="schemabank"), 1e-3),
        (RunConfig(arm="schemabank", train=TrainSettings(learning_rate=4e-3)), 4e-3),
        (RunConfig(arm="schemabank", curriculum=THREE_STAGES), 1e-4),
        (RunConfig(arm="lora", curriculum=THREE_STAGES), 1e-3),
        (RunConfig(arm="schemabank", curriculum=(ROUTER_ALONE,)), 1e-3),
    ],
)
def test_the_highest_rate_is_loras_in_whatever_way_it_was_given(
    config: RunConfig, expected: float
) -> None:
    assert highest_rate(config.model_dump(mode="json")) == expected


def test_the_rate_of_a_run_that_was_written_before_stages_had_shares_is_read() -> None:
    settings = RunConfig(arm="schemabank", curriculum=THREE_STAGES).model_dump(mode="json")
    for stage in settings["curriculum"]:
        del stage["learning_rate_ratio"]
    assert highest_rate(settings) == 1e-4
