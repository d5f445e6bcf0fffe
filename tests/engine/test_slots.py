"""Skipped steps: what counts as an update, how many may be skipped, and what a failure says."""

from collections.abc import Collection

import pytest

import cohorts
from cohorts import LORA_STAGE, bank_run, lora_run
from schemabank.config.settings import Stage, TrainSettings
from schemabank.engine.run import Run
from schemabank.engine.slots import (
    MOST_NAMED,
    Slot,
    most_skipped,
)

DATA = cohorts.data()  # 22 examples, 6 steps an epoch
TRAIN = TrainSettings()


def walked(run: Run, skipped: Collection[int]) -> Slot:
    """A slot after its run, or after the step at which it failed."""
    slot = Slot(run, DATA)
    while not slot.has_ended:
        settings = slot.settings()
        slot.count(slot.step, settings, skipped=slot.step in skipped)
        slot.step += 1
    return slot


def failure(slot: Slot) -> str:
    assert slot.failure is not None
    assert slot.failure.kind == "diverged"
    return slot.failure.message


def test_an_update_of_a_group_is_a_step_that_trains_it_and_is_not_skipped() -> None:
    run = bank_run(5, max_steps=100)
    whole = walked(run, ())
    planned = {
        group: sum(p.stop - p.start for p in whole.course.plans if group in p.stage.train)
        for group in ("lora", "router", "schemas")
    }
    assert whole.num_updates == planned
    assert whole.skipped == []
    last = whole.course.plans[-1]
    assert set(last.stage.train) == set(planned)
    some = walked(run, {0, last.start + 1})  # the router's stage, and all groups'
    assert some.failure is None
    assert some.skipped == [0, last.start + 1]
    less = {"lora": 1, "router": 2, "schemas": 1}
    assert some.num_updates == {group: planned[group] - less[group] for group in planned}


def test_a_step_with_the_bank_off_is_no_update_of_it() -> None:
    stage = Stage(
        name="bare", ratio=1.0, train=("router", "lora"), learning_rate=1e-3, bare_tail_ratio=0.5
    )
    slot = walked(bank_run(5, stages=(stage,), max_steps=10), ())
    assert slot.num_updates == {"lora": 10, "router": 5}


@pytest.mark.parametrize(
    ("num_steps", "allowed"), [(1, 0), (2, 1), (15, 1), (39, 1), (40, 2), (100, 5), (1868, 93)]
)
def test_one_step_or_one_in_twenty_is_forgiven_and_never_all(num_steps: int, allowed: int) -> None:
    assert most_skipped(num_steps, TRAIN.max_skipped_ratio) == allowed
    assert allowed < num_steps
    run = lora_run(1, max_steps=num_steps)
    spread = [num_steps * i // (allowed + 1) for i in range(allowed + 1)]
    assert walked(run, spread[:allowed]).failure is None
    said = failure(walked(run, spread))
    steps = f"{allowed + 1} of the {num_steps} steps of the run (allowed: {allowed})"
    assert said.startswith(
        f"loss or gradient not finite in {steps}, up to step {spread[-1]}: lower the "
    )


def test_thirteen_of_fifteen_steps_are_too_many_long_before_the_end() -> None:
    slot = walked(lora_run(1, max_steps=15), set(range(15)) - {0, 7})
    assert slot.step == 3
    assert "2 of the 15 steps of the run" in failure(slot)


def test_a_stage_that_skips_its_steps_fails_in_a_run_that_skips_few() -> None:
    """A short stage is lost by fewer skips than a twentieth of the run."""
    short = LORA_STAGE.model_copy(update={"name": "short", "ratio": 0.02})
    long = LORA_STAGE.model_copy(update={"name": "long", "ratio": 0.98})
    for num_steps, of_short, lost in ((100, 2, {98, 99}), (50, 1, {49}), (500, 10, {491, 493})):
        slot = walked(
            bank_run(5, stages=(long, short), max_steps=num_steps),
            lost,
        )
        assert len(lost) <= TRAIN.max_skipped_ratio * num_steps
        allowed = min(of_short - 1, 1)
        said = failure(slot)
        assert f"{len(lost)} of the {of_short} steps of the stage 'short' (allowed: {allowed})" in (
            said
        )


def test_many_in_a_row_end_a_run_that_might_skip_more_in_all() -> None:
    run = lora_run(1, max_steps=1000)
    in_row = TRAIN.max_skipped_in_row
    assert most_skipped(1000, TRAIN.max_skipped_ratio) > 2 * in_row
    just = {*range(in_row), *range(500, 500 + in_row)}
    assert walked(run, just).failure is None
    said = failure(walked(run, range(300, 400)))
    assert said.startswith(
        "loss or gradient not finite in 21 steps in a row (allowed: 20), up to step 320: "
    )


def test_how_many_may_be_skipped_is_a_setting() -> None:
    for ratio, skipped, allowed in ((0.0, {7}, 0), (0.3, {1, 4, 7, 9}, 3), (1.0, range(9), 9)):
        slot = walked(lora_run(1, max_steps=10, max_skipped_ratio=ratio), skipped)
        assert (slot.failure is None) == (len(skipped) <= allowed)
        if slot.failure is not None:
            assert f"of the 10 steps of the run (allowed: {allowed})" in slot.failure.message
    run = lora_run(1, max_steps=10, max_skipped_ratio=1.0, max_skipped_in_row=2)
    assert walked(run, {0, 1, 3, 4, 6, 7}).failure is None
    assert "in 3 steps in a row (allowed: 2), up to step 6: " in failure(
        walked(run, {0, 1, 4, 5, 6})
    )


def test_a_failure_names_the_examples_of_the_first_skipped_steps() -> None:
    run = lora_run(3, max_steps=15)
    slot = walked(run, {4, 9})
    per_epoch = DATA.schedule.steps_per_epoch
    wanted = []
    for step in (4, 9):
        epoch, position = divmod(step, per_epoch)
        rows = DATA.schedule.rows(run.seed, epoch)[position]
        wanted += [DATA.examples[row].id for row in rows if row >= 0]
    wanted = list(dict.fromkeys(wanted))
    ids = failure(slot).partition("skipped steps (")[2].removesuffix(")")
    assert ids.removesuffix(" and more").split(", ") == wanted[:MOST_NAMED]
    assert ids.endswith(" and more") == (len(wanted) > MOST_NAMED)
    many = failure(walked(lora_run(3, max_steps=1000), range(1000)))
    assert many.endswith(" and more)")
    assert many.count("sum/") == MOST_NAMED
