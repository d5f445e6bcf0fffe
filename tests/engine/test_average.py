"""A run that ends as an average of its adapter, against the weights of every step."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cohorts import BANK, FAST_STAGES, LORA, bank_run, cohort, data, lora_run, with_banks
from schemabank.common.failure import Failure
from schemabank.config.train import AverageSettings
from schemabank.engine.average import average_rate, checkpoints
from schemabank.engine.cohort import Cohort
from schemabank.engine.optim import AdamWSettings, SlotAdamW
from schemabank.engine.run import Run
from schemabank.engine.slots import Slot
from schemabank.engine.stack import AdapterStack

LAST = AverageSettings(kind="last", last=4, span_ratio=0.5)
EXPONENTIAL = AverageSettings(kind="exponential", decay=0.8)
BEMA = AverageSettings(kind="bema", ema_power=0.5, bias_power=0.2, lag=10)
KINDS = {each.kind: each for each in (LAST, EXPONENTIAL, BEMA)}


def by_step(run: Run) -> tuple[list[Tensor], Tensor]:
    """A run's adapter before its first step and after each, and what it ends as."""
    made = cohort([run], data())
    made.stack.initialise(0, run.seed)
    group = made.stack.groups["lora"]
    rows = [group.weights[0].clone()]
    for _ in made.steps():
        rows.append(group.weights[0].clone())  # noqa: PERF401 -- the weights change in place
    return rows, made.finished[run.name]["lora"]


def weighted(rows: list[Tensor], settings: AverageSettings) -> Tensor:
    """The average from all weights at once, in float64."""
    wide, count = torch.stack(rows).double(), len(rows) - 1
    if settings.kind == "last":
        return wide[list(checkpoints(settings, count))].mean(0)
    if settings.kind == "exponential":
        shares = settings.decay ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
        return (shares[:, None] * wide[1:]).sum(0) / shares.sum()
    mean = wide[0]
    for number in range(1, count + 1):
        rate = (settings.lag + number) ** -settings.ema_power
        mean = (1 - rate) * mean + rate * wide[number]
    return mean + (settings.lag + count) ** -settings.bias_power * (wide[-1] - wide[0])


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("banked", [False, True])
def test_a_run_ends_as_the_average_of_its_weights(settings: AverageSettings, banked: bool) -> None:
    plain = bank_run(1, num_train_epochs=4) if banked else lora_run(1, num_train_epochs=4)
    rows, end = by_step(replace(plain, average=settings))
    others, last = by_step(plain)
    # What it ends as is taken when its slot is left, after the last step's weights were seen.
    assert all(map(torch.equal, rows[:-1], others[:-1])), "the training is not changed"
    torch.testing.assert_close(end.double(), weighted(others, settings), rtol=1e-5, atol=1e-8)
    assert not torch.allclose(end, last, rtol=1e-3)


def test_a_neighbours_average_changes_no_bit() -> None:
    averaged = [replace(lora_run(2), average=settings) for settings in KINDS.values()]
    found = []
    for neighbour in (lora_run(2), *averaged, bank_run(2)):
        made = cohort([replace(lora_run(1), average=EXPONENTIAL), neighbour], data())
        list(made.steps())
        found.append(made.finished["lora-1"]["lora"])
        plain = cohort([lora_run(1), neighbour], data())
        list(plain.steps())
        found.append(plain.finished["lora-1"]["lora"])
    assert all(torch.equal(one, found[0]) for one in found[::2])
    assert all(torch.equal(one, found[1]) for one in found[1::2])


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_halted_run_goes_on_with_its_mean(settings: AverageSettings) -> None:
    """Before any weights count, and after."""
    runs = [replace(lora_run(1, num_train_epochs=4), average=settings), bank_run(2)]
    whole = cohort(runs, data())
    list(whole.steps())
    for halted_at in (3, 17):
        first = cohort(runs, data())
        steps = first.steps()
        for _ in range(halted_at):
            next(steps)
        halted = first.halt()
        stack = AdapterStack(first.stack.model, lora=[LORA] * 2, attach=with_banks(BANK))
        rest = Cohort(stack, runs, data(), halted=halted)
        list(rest.steps())
        for run in runs:
            assert torch.equal(rest.finished[run.name]["lora"], whole.finished[run.name]["lora"])


def test_steps_that_do_not_move_the_weights_count_like_all_others() -> None:
    """A last stage without LoRA, and a step that is skipped."""
    first = FAST_STAGES[2].model_copy(update={"ratio": 0.5})
    router = FAST_STAGES[0].model_copy(update={"ratio": 0.5})
    run = replace(bank_run(1, stages=(first, router), num_train_epochs=4), average=LAST)
    _, end = by_step(run)
    others, last = by_step(replace(run, average=AverageSettings()))
    torch.testing.assert_close(end.double(), weighted(others, LAST), rtol=1e-5, atol=1e-8)
    assert last.abs().max() > 0
    optimizer = SlotAdamW(torch.ones(1, 3), AdamWSettings(*torch.ones(5, 1, 1)), averages=True)
    optimizer.weights.fill_(5)
    optimizer.move_average(torch.ones(1, 1))
    assert optimizer.average is not None
    assert optimizer.average.tolist() == [[5, 5, 5]]


def test_a_run_that_fails_ends_as_its_last_weights() -> None:
    made = cohort([replace(lora_run(1, num_train_epochs=4), average=LAST), lora_run(2)], data())
    for number, _ in enumerate(made.steps()):
        if number == 5:
            last = made.stack.groups["lora"].weights[0].clone()
            made.slots[0].failure = Failure("diverged", "too fast")
    assert torch.equal(made.finished["lora-1"]["lora"], last)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("stopped_at", [1, 5, 13, 17])
def test_a_run_that_is_stopped_ends_as_its_mean_so_far_or_else_as_its_last_weights(
    settings: AverageSettings, stopped_at: int
) -> None:
    """The first of the last checkpoints comes after step 15 of 24: before it there is no mean."""
    run = replace(lora_run(1, num_train_epochs=4), average=settings)
    rows, _ = by_step(replace(run, average=AverageSettings()))
    made = cohort([run, lora_run(2, num_train_epochs=4)], data())
    assert made.slots[0].num_steps == 24
    seen: list[Tensor] = []

    def stop(seated: Mapping[int, Slot]) -> None:
        slot = seated.get(0)
        if slot is made.slots[0] and slot.step == stopped_at:
            seen.append(made.weights(0)["lora"])
            slot.stopped = True

    made.between = stop
    list(made.steps())
    end = made.finished["lora-1"]["lora"]
    if settings.kind == "last":
        places = [place for place in checkpoints(settings, 24) if place <= stopped_at]
        expected = torch.stack([rows[place] for place in places or [stopped_at]]).double().mean(0)
    else:
        expected = weighted(rows[: stopped_at + 1], settings)
    torch.testing.assert_close(end.double(), expected, rtol=1e-5, atol=1e-8)
    assert not torch.equal(end, rows[0])
    assert torch.equal(end, seen[0])


def test_a_mean_from_before_a_reduction_counts_no_more() -> None:
    """It has the weights of another rank."""
    early = AverageSettings(kind="last", last=4, span_ratio=1)
    slot = Slot(replace(lora_run(1, num_train_epochs=4), average=early), data())
    slot.step = 7
    assert slot.ends_as_mean
    slot.course.reduced_at = 7
    assert slot.ends_as_mean, "it is reduced when the next step begins"
    slot.step = 8
    assert not slot.ends_as_mean
    slot.step = 24
    assert slot.ends_as_mean


def test_checkpoints_are_spread_over_the_end_of_a_run() -> None:
    assert checkpoints(LAST, 80) == (50, 60, 70, 80)
    assert checkpoints(LAST, 5) == (2, 3, 4, 5)
    assert checkpoints(LAST, 3) == (1, 2, 3)
    assert checkpoints(LAST, 1) == (1,)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_the_first_weights_that_count_count_whole(settings: AverageSettings) -> None:
    rates = [average_rate(settings, step, 40) for step in range(40)]
    counted = [rate for rate in rates if rate]
    assert all(0 < rate <= 1 for rate in counted)
    if settings.kind != "bema":  # whose mean begins at the first weights
        assert counted[0] == pytest.approx(1)


def test_no_average_asks_for_no_mean() -> None:
    made = cohort([lora_run(1), bank_run(2, bank=BANK, lora=LORA)], data())
    assert all(optimizer.average is None for optimizer in made.optimizers.values())
    assert average_rate(AverageSettings(), 3, 10) == 0
