"""What of a comparison was unequal is said in sentences, and only that."""

from dataclasses import replace

import pytest

from schemabank.config import RunConfig
from schemabank.fairness import Trained, highest_rate, inequalities, trained
from schemabank.trainconfig import THREE_STAGES, TrainSettings

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
