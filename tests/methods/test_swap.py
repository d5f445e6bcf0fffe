"""SWAP: every branch starts where the first did, and the run ends as the mean of their ends."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import cohorts
from cohorts import BANK, LORA, LORA_STAGE, bank_run, lora_run, with_banks
from schemabank.common.failure import Failure
from schemabank.config.methods import SWAPSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.planner import num_steps
from schemabank.engine.run import OnCourse, Run
from schemabank.engine.schedule import StepSettings
from schemabank.engine.slots import Slot
from schemabank.engine.stack import AdapterStack
from schemabank.methods.swap import SWAPCourse
from schemabank.runs.continuing import check_continues
from schemabank.runs.prepare import engine_run
from tiny import tiny_model

DATA = cohorts.data()
BEFORE, BRANCH, COUNT = 6, 3, 3
STAGE = LORA_STAGE.model_copy(update={"lr_scheduler_type": "linear"})
ENDS = [BEFORE + BRANCH * number for number in range(1, COUNT + 1)]
GPU = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def run(seed: int = 1, course: type[SWAPCourse] = SWAPCourse, **train: object) -> Run:
    swap = SWAPSettings(num_branches=COUNT, branch_ratio=BRANCH / BEFORE)
    return Run(
        name=f"swap-{seed}",
        seed=seed,
        stages=(STAGE,),
        train=lora_run(seed, max_steps=BEFORE, **train).train,
        lora=LORA,
        method=OnCourse(partial(course, swap=swap)),
    )


def cohort_of(runs: Sequence[Run], device: str = "cpu", slots: int | None = None) -> Cohort:
    model = tiny_model("llama").to(device)
    stack = AdapterStack(model, lora=[LORA] * (slots or len(runs)), attach=with_banks(BANK))
    return Cohort(stack, runs, DATA)


def followed(given: Run, device: str = "cpu") -> tuple[dict[int, Tensor], Tensor, list[RunStep]]:
    """The adapter of a run by the steps that it has taken, what it ends as, and its steps."""
    trained, rows = cohort_of([given], device), dict[int, Tensor]()

    def look(seated: Mapping[int, Slot]) -> None:
        if seated:
            rows[seated[0].step] = trained.stack.groups["lora"].weights[0].cpu().clone()

    trained.between = look
    steps = [step for (step,) in trained.steps()]
    return rows, trained.finished[given.name]["lora"], steps


class Idle(SWAPCourse):
    """A course whose first branches do not move the weights."""

    def step(self, number: int) -> StepSettings:
        found = super().step(number)
        idle = self.branch_starts[0] <= number < self.branch_starts[-1]
        return replace(found, learning_rate=0.0) if idle else found


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_ends_as_the_mean_of_its_branches_ends(device: str) -> None:
    rows, end, steps = followed(run(), device)
    assert len(steps) == ENDS[-1]
    assert steps[0].num_steps == ENDS[-1]
    ends = torch.stack([rows[number] for number in ENDS])
    torch.testing.assert_close(end, ends.double().mean(0).float(), rtol=1e-6, atol=1e-8)
    assert all(not torch.allclose(one, other) for one, other in pairwise(ends))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_branch_starts_where_the_first_did(optimizer: str, device: str) -> None:
    """So what the last one comes to does not depend on the others before it."""
    rows, _, _ = followed(run(optimizer=optimizer), device)
    idle, _, _ = followed(run(course=Idle, optimizer=optimizer), device)
    assert torch.equal(idle[ENDS[1]], idle[BEFORE])
    assert torch.equal(rows[ENDS[-1]], idle[ENDS[-1]])


def test_the_steps_before_the_branches_are_those_of_plain_lora() -> None:
    rows, _, _ = followed(run())
    plain, _, _ = followed(replace(lora_run(1, max_steps=BEFORE), stages=(STAGE,)))
    assert all(torch.equal(rows[number], row) for number, row in plain.items())


def test_every_branch_has_the_runs_schedule_and_batches_of_its_own() -> None:
    _, _, steps = followed(run())
    branches = [steps[end - BRANCH : end] for end in ENDS]
    rates = [[step.learning_rate for step in branch] for branch in branches]
    assert rates[0] == rates[1] == rates[2]
    assert max(rates[0]) > rates[0][-1]
    assert [branch[0].stage for branch in branches] == ["branch 1", "branch 2", "branch 3"]
    assert len({branch[0].loss for branch in branches}) == COUNT


@pytest.mark.parametrize("device", DEVICES)
def test_neighbours_and_branches_do_not_matter_to_each_other(device: str) -> None:
    found = []
    for others in ([lora_run(2), bank_run(3)], [run(2), run(3)], [bank_run(2), lora_run(3)]):
        trained = cohort_of([run(), *others], device, slots=3)
        list(trained.steps())
        found.append(trained.finished["swap-1"]["lora"])
        if others[0].name.startswith("lora"):
            plain = cohort_of([run(5), *others], device, slots=3)
            list(plain.steps())
            beside = (trained.finished[others[0].name], plain.finished[others[0].name])
            assert torch.equal(*(weights["lora"] for weights in beside))
    assert all(torch.equal(each, found[0]) for each in found)


def test_a_run_that_waits_for_a_slot_ends_as_one_that_does_not() -> None:
    waiting = cohort_of([bank_run(2, num_train_epochs=4), run(3), run(), lora_run(4)], slots=2)
    list(waiting.steps())
    at_once = cohort_of([run()], slots=2)
    list(at_once.steps())
    assert torch.equal(waiting.finished["swap-1"]["lora"], at_once.finished["swap-1"]["lora"])
    assert all(slot.origin is None for slot in waiting.slots)


def test_an_average_of_other_arms_leaves_the_mean_as_it_is() -> None:
    found = []
    for average in ({}, {"kind": "bema"}):
        config = RunConfig.model_validate(
            {
                "arm": "swap",
                "average": average,
                "train": {"max_steps": 2},
                "swap": {"num_branches": 2},
            }
        )
        check_continues(config)  # as an adapter's run, which a BEMA that counts may not be
        stack = AdapterStack(tiny_model("llama"), lora=[config.lora])
        own = engine_run(config, DATA.examples, stack, DATA.tokenizer, name="swap")
        trained = Cohort(stack, [own], DATA)
        list(trained.steps())
        found.append(trained.finished["swap"]["lora"])
    assert torch.equal(*found)


@pytest.mark.parametrize("halted_at", [BEFORE - 1, BEFORE, BEFORE + 1, ENDS[0], ENDS[1] + 2])
def test_a_halted_run_goes_on_with_its_branches(halted_at: int) -> None:
    runs = [run(), bank_run(2)]
    whole = cohort_of(runs)
    list(whole.steps())
    first = cohort_of(runs)
    steps = first.steps()
    for _ in range(halted_at):
        next(steps)
    halted = first.halt()
    stack = AdapterStack(first.stack.model, lora=[LORA] * 2, attach=with_banks(BANK))
    rest = Cohort(stack, runs, DATA, halted=halted)
    list(rest.steps())
    for each in runs:
        assert torch.equal(rest.finished[each.name]["lora"], whole.finished[each.name]["lora"])


def test_a_run_that_fails_ends_as_its_last_weights() -> None:
    trained = cohort_of([run(), lora_run(2)])
    for number, _ in enumerate(trained.steps()):
        if number == BEFORE + 1:
            last = trained.stack.groups["lora"].weights[0].clone()
            trained.slots[0].failure = Failure("diverged", "too fast")
    assert torch.equal(trained.finished["swap-1"]["lora"], last)


@pytest.mark.parametrize("stopped_at", [BEFORE - 1, ENDS[0] - 1, ENDS[0], ENDS[1] + 1])
def test_a_run_that_is_stopped_ends_as_the_mean_of_whole_branches_if_there_is_one(
    stopped_at: int,
) -> None:
    rows, _, _ = followed(run())
    trained = cohort_of([run()])

    def stop(seated: Mapping[int, Slot]) -> None:
        for slot in seated.values():
            slot.stopped = slot.step == stopped_at

    trained.between = stop
    list(trained.steps())
    whole = [end for end in ENDS if end <= stopped_at] or [stopped_at]
    expected = torch.stack([rows[end] for end in whole]).double().mean(0).float()
    end = trained.finished["swap-1"]["lora"]
    torch.testing.assert_close(end, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("train", [{"num_train_epochs": 3}, {"max_steps": 7}])
def test_the_planner_knows_how_long_a_run_is(train: dict[str, int]) -> None:
    epoch = DATA.schedule.steps_per_epoch
    config = RunConfig.model_validate({"arm": "swap", "train": train, "swap": {"num_branches": 3}})
    swap = config.own(SWAPSettings)
    given = replace(run(), train=config.train)
    course = SWAPCourse(given, DATA, swap=swap)
    assert course.num_steps == num_steps(config, epoch=epoch) == course.plans[-1].stop
    before = num_steps(config.model_copy(update={"arm": "lora"}), epoch=epoch)
    assert course.branch_starts == tuple(before + n * round(before / 2) for n in range(3))
