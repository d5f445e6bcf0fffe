"""What a user is told of a run while it trains, and what is no reason to say anything."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import nan
from typing import cast

import numpy as np
import pytest

import cohorts
from schemabank.common.failure import Failure
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.idle import Neglected
from schemabank.engine.slots import Slot
from schemabank.runs.watching import LAST, MOST_TOLD, USUAL, RunWatch

DATA = cohorts.data()
STEP = RunStep("lora-1", 0, 900, "lora", 1.0, 1.0, 1e-3, 0.5, 40, skipped=False)


class Told:
    """A cohort that finds what it is told to find, and what was said of it."""

    def __init__(self, idle: Iterable[Neglected] = (), num_runs: int = 1) -> None:
        self.idle, self.notes = list(idle), list[str]()
        self.slots = [Slot(cohorts.lora_run(seed), DATA) for seed in range(num_runs)]
        self.watch = RunWatch(cast(Cohort, self), self.notes.append)

    def idle_parts(self) -> list[Neglected]:
        return self.idle

    def see(self, losses: Iterable[float], stage: str = "lora", run: str = "lora-1") -> list[str]:
        """Show losses one after another; return what was said of them."""
        before = len(self.notes)
        for number, loss in enumerate(losses):
            self.watch.see(replace(STEP, run=run, step=number, stage=stage, loss=loss))
        return self.notes[before:]


def noisy(level: float, count: int, *, seed: int = 0, sigma: float = 0.4) -> list[float]:
    """Losses of small batches: their tail is long, as that of a log-normal distribution."""
    drawn = np.random.default_rng(seed).lognormal(-(sigma**2) / 2, sigma, count)
    return [level * float(each) for each in drawn]


def test_a_loss_that_jumps_and_stays_is_said_once_with_step_and_values() -> None:
    told = Told()
    (said,) = told.see([*noisy(1.0, 200), *noisy(6.0, 200, seed=1)])
    step = int(said.partition("at step ")[2].partition(":")[0])
    assert 200 < step < 200 + 2 * LAST
    assert said.startswith("lora-1: the loss has jumped from about ")
    assert "lower train.learning_rate or raise train.warmup_ratio" in said
    before, after = (
        float(said.partition(word)[2].split()[0].rstrip(",")) for word in ("from about ", " to ")
    )
    assert 0.8 < before < 1.2
    assert after > 3


def test_each_stage_and_run_is_watched_for_itself() -> None:
    told = Told()
    jump = [*noisy(1.0, 100), *noisy(8.0, 30)]
    assert len(told.see(jump, run="a")) == 1
    assert told.see(noisy(8.0, 100), stage="next", run="a") == []
    assert len(told.see(jump, stage="last", run="a")) == 1
    assert len(told.see(jump, run="b")) == 1


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([*noisy(1.0, 100), 50.0, *noisy(1.0, 100)], id="one hard batch"),
        pytest.param([*noisy(1.0, 100), 9.0, 1.0, 9.0, *noisy(1.0, 90)], id="two"),
        pytest.param([1.0] * 100 + [1.4] * 100, id="a step of less than half"),
        pytest.param([*noisy(4.0, 30), *noisy(1.0, 100)], id="a loss that falls"),
        pytest.param([*noisy(1.0, USUAL // 2), *noisy(9.0, 100)], id="too early to know"),
        pytest.param([*np.linspace(1, 3, 800)], id="a slow rise, which validation shows"),
        pytest.param([nan, 1.0] * 300, id="none known in many"),
        pytest.param([*noisy(1e-4, 100), *noisy(0.05, 100)], id="learned by heart"),
    ],
)
def test_what_is_usual_is_not_said(losses: list[float]) -> None:
    assert Told().see(losses) == []


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, 1.0])
def test_noise_alone_is_never_said(sigma: float) -> None:
    """In 8,000 steps that fall from 3 to 0.3, at spreads from small to that of single answers."""
    for seed in range(4):
        noise = noisy(1.0, 2000, seed=seed, sigma=sigma)
        falling = np.geomspace(3.0, 0.3, len(noise))
        assert Told().see(level * each for level, each in zip(falling, noise, strict=True)) == []


def test_a_skipped_step_is_said_with_its_numbers_and_examples() -> None:
    told = Told()
    skipped = replace(
        STEP, step=7, total_loss=nan, grad_norm=nan, skipped=True, examples=("a", "b")
    )
    told.watch.see(skipped)
    assert told.notes == [
        "lora-1: step 7 is skipped and changes nothing, since its loss is nan and its gradient's "
        "norm nan; its examples are a, b"
    ]
    for number in range(2, 9):
        told.watch.see(replace(skipped, step=7 + number, examples=tuple("abcdefghij")))
    assert len(told.notes) == MOST_TOLD
    assert told.notes[-1].endswith(
        "its examples are a, b, c, d, e, f, g, h and more; further ones are only counted"
    )
    told.watch.see(replace(skipped, run="lora-2"))
    assert told.notes[-1].startswith("lora-2: step 7 is skipped")


@pytest.mark.parametrize(
    ("num_runs", "others"), [(1, ""), (9, "; other runs are not named")], ids=["one", "nine"]
)
def test_idle_parts_are_said_once_and_of_one_run(num_runs: int, others: str) -> None:
    """Nearly every long run has some."""
    parts: Mapping[str, list[int]] = {"block 28": [3, 5], "block 29": [7]}
    mend = "raise bank.load_balance_weight"
    idle = (Neglected(f"b-{n}", 300, 128, "schemas", mend, parts, 64) for n in range(num_runs))
    told = Told(idle, num_runs)
    told.watch.look()
    told.watch.look()
    assert told.notes == [
        "b-0: for the last 128 steps up to 300, routers gave hardly any weight to 3 of 64 schemas "
        f"(2 in block 28, 1 in block 29), which learn nothing: {mend}{others}"
    ]


def test_losses_of_a_run_go_with_it_however_it_ends() -> None:
    """A cohort may have hundreds of runs."""
    made = cohorts.cohort([cohorts.lora_run(seed) for seed in range(4)], DATA)
    watch, held, last = RunWatch(made, [].append), list[int](), made.slots[0].num_steps - 1
    for steps in made.steps():
        if steps[0].step == 3:
            made.slots[1].failure = Failure("disk", "No space left on device")
        if steps[0].step == 6:
            made.slots[2].stopped = True
        for step in steps:
            is_skipped = step.step == last and step.run == "lora-3"
            watch.see(replace(step, skipped=is_skipped))
        watch.look()
        held.append(len(watch._losses))
    assert held == [4] * 3 + [3] * 3 + [2] * (last - 6) + [0]
