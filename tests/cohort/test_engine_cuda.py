"""The engine's promises with compiling and capture on; skipped, and said so, without a GPU."""

from dataclasses import replace

import pytest
import torch

import cohorts
from cohorts import FAST_STAGES, bank_run, lora_run, train, weights
from schemabank.cohort.decode import greedy
from schemabank.cohort.engine import Cohort, RunStep
from schemabank.cohort.slots import Run
from tiny import END_TOKEN_ID

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # The compiler and its libraries warn of their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]

SOLO_TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 5e-2}
DTYPES = [torch.float32, torch.bfloat16]
STAGE_1 = replace(bank_run(5), stages=(FAST_STAGES[0].model_copy(update={"ratio": 1.0}),))
DATA = cohorts.data(max_buckets=1)


def captured(runs: list[Run], *, dtype: torch.dtype, slots: int | None = None) -> Cohort:
    """A cohort on the GPU, which must not fall back to anything."""
    return cohorts.cohort(
        runs, DATA, dtype=dtype, device="cuda", slots=slots, explain=lambda line: pytest.fail(line)
    )


def losses(steps: list[list[RunStep]], run: str) -> list[tuple[float, float, float]]:
    return [(r.loss, r.total_loss, r.grad_norm) for step in steps for r in step if r.run == run]


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    """Whatever their seed, arm, stage or settings, at a fixed number of slots."""
    found = []
    for neighbour in (bank_run(6), bank_run(7, weight_decay=0.5), lora_run(9), STAGE_1):
        together = captured([bank_run(5), replace(neighbour, name="neighbour")], dtype=dtype)
        found.append((losses(train(together), "bank-5"), weights(together, 0)))
        together.stack.remove()
    for other in found[1:]:
        assert other[0] == found[0][0]
        assert_same_bits(other[1], found[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_together_equals_alone(dtype: torch.dtype) -> None:
    together = captured([bank_run(3), lora_run(4)], dtype=dtype)
    steps = train(together)
    for slot, run in enumerate([bank_run(3), lora_run(4)]):
        alone = captured([run], dtype=dtype)
        solo = losses(train(alone), run.name)
        pairs = zip(losses(steps, run.name), solo, strict=True)
        assert max(abs(a[0] - b[0]) for a, b in pairs) < SOLO_TOLERANCE[dtype]
        if dtype == torch.float32:
            for name, values in weights(alone, 0).items():
                torch.testing.assert_close(
                    weights(together, slot)[name], values, rtol=0, atol=SOLO_TOLERANCE[dtype]
                )
        alone.stack.remove()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_refilled_slot_carries_nothing_over(dtype: torch.dtype) -> None:
    before = [lora_run(1, num_train_epochs=1), bank_run(2, num_train_epochs=3)]
    refilled = captured([*before, bank_run(5)], dtype=dtype, slots=2)
    steps = train(refilled)
    fresh = captured([bank_run(5), lora_run(8)], dtype=dtype)
    assert losses(steps, "bank-5") == losses(train(fresh), "bank-5")
    for name, row in refilled.finished["bank-5"].items():
        assert torch.equal(row, fresh.finished["bank-5"][name])


def test_the_same_cohort_twice_gives_the_same_bits() -> None:
    first, second = (captured([bank_run(5)], dtype=torch.bfloat16) for _ in range(2))
    assert losses(train(first), "bank-5") == losses(train(second), "bank-5")
    assert_same_bits(weights(first, 0), weights(second, 0))


def test_what_is_frozen_never_moves() -> None:
    trained = captured([STAGE_1], dtype=torch.float32)
    own = {id(p) for group in trained.stack.groups.values() for p in group.parameters.values()}
    base = {n: p.clone() for n, p in trained.stack.model.named_parameters() if id(p) not in own}
    trained.stack.initialise(0, 5)
    before = weights(trained, 0)
    train(trained)
    after = weights(trained, 0)
    assert not torch.equal(after["router"], before["router"])
    assert torch.equal(after["schemas"], before["schemas"])
    assert torch.equal(after["lora"], before["lora"])
    parameters = dict(trained.stack.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in base.items())


def test_removal_restores_the_logits_bit_for_bit() -> None:
    tokens = torch.arange(3, 40, device="cuda")[None]
    trained = captured([bank_run(1), lora_run(2)], dtype=torch.bfloat16)
    model = trained.stack.model
    trained.stack.remove()
    with torch.no_grad():
        before = model(tokens).logits
    trained = cohorts.cohort([bank_run(1)], DATA, dtype=torch.bfloat16, device="cuda")
    train(trained)
    trained.stack.remove()
    with torch.no_grad():
        assert torch.equal(trained.stack.model(tokens).logits, before)


def test_a_step_that_is_not_finite_changes_nothing_and_no_neighbour() -> None:
    poisoned = captured([bank_run(5), bank_run(6, num_train_epochs=9)], dtype=torch.float32)
    clean = captured([bank_run(5), bank_run(7, num_train_epochs=9)], dtype=torch.float32)
    reports = []
    for number, step in enumerate(poisoned.steps()):
        if number == 0:
            poisoned.stack.banks.banks[2].router.data[1, 0, 0] = float("nan")
        reports.append(step)
    assert poisoned.slots[1].failure is not None
    assert losses(reports, "bank-5") == losses(train(clean), "bank-5")
    assert_same_bits(weights(poisoned, 0), weights(clean, 0))


def test_forty_runs_evaluate_as_one_alone() -> None:
    runs = [bank_run(seed) if seed % 2 else lora_run(seed) for seed in range(40)]
    together = captured(runs, dtype=torch.float32)
    train(together)
    prompts = [e.tokens[: e.label_start] for e in DATA.encoded]
    for index in (3, 38):
        alone = captured([runs[index]], dtype=torch.float32)
        train(alone)
        for name, values in weights(alone, 0).items():
            torch.testing.assert_close(
                weights(together, index)[name], values, rtol=0, atol=SOLO_TOLERANCE[torch.float32]
            )
        with alone.stack.evaluating("off"):
            (expected,) = greedy(
                alone.stack, prompts, max_new_tokens=8, end_token_ids=[END_TOKEN_ID], batch_size=8
            )
        alone.stack.remove()
        with together.stack.evaluating("off"):
            found = greedy(
                together.stack,
                prompts,
                max_new_tokens=8,
                end_token_ids=[END_TOKEN_ID],
                batch_size=8,
            )[index]
        same = sum(a.tokens == b.tokens for a, b in zip(found, expected, strict=True))
        assert same >= len(prompts) - 1, "near ties may turn on rounding"
