"""Slot-wise AdamW and clipping against torch's own, one optimizer a slot."""

import pytest
import torch
from torch import Tensor

from schemabank.cohort.optim import AdamWSettings, SlotAdamW, clip_factors

SLOTS, SIZE = 3, 7
BETA1 = (0.9, 0.5, 0.0)
BETA2 = (0.999, 0.9, 0.99)
EPSILON = (1e-8, 1e-3, 1e-6)
DECAY = (0.01, 0.0, 0.3)
RATES = (1e-1, 1e-3, 1e-2)


def column(values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def new_optimizer(weights: Tensor) -> SlotAdamW:
    coefficients = (column(v, weights.dtype) for v in (BETA1, BETA2, EPSILON, DECAY))
    return SlotAdamW(weights, AdamWSettings(*coefficients))


def reference(weights: Tensor, slot: int) -> torch.optim.AdamW:
    row = weights[slot].clone().requires_grad_()
    return torch.optim.AdamW(
        [row],
        lr=RATES[slot],
        betas=(BETA1[slot], BETA2[slot]),
        eps=EPSILON[slot],
        weight_decay=DECAY[slot],
    )


def row_of(optimizer: torch.optim.AdamW) -> Tensor:
    (row,) = optimizer.param_groups[0]["params"]
    return row


def reference_step(optimizer: torch.optim.AdamW, grad: Tensor, rate: float) -> None:
    optimizer.param_groups[0]["lr"] = rate
    row_of(optimizer).grad = grad.clone()
    optimizer.step()


def randoms(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)], ids=str
)
def test_every_row_is_torchs_adamw(dtype: torch.dtype, tolerance: float) -> None:
    """Rates, decays, betas and active steps differ by slot; rows keep their own step count."""
    weights = randoms(SLOTS, SIZE, seed=0, dtype=dtype)
    start = weights.clone()
    theirs = [reference(weights, slot) for slot in range(SLOTS)]
    ours = new_optimizer(weights)
    for step in range(60):
        grad = randoms(SLOTS, SIZE, seed=step + 1, dtype=dtype) * 10.0 ** (step % 5 - 2)
        rates = tuple(rate * (1 - step / 60) for rate in RATES)
        active = torch.tensor([[True], [step % 3 > 0], [step >= 20]])
        ours.update(grad, learning_rate=column(rates, dtype), active=active)
        for slot in range(SLOTS):
            if active[slot]:
                reference_step(theirs[slot], grad[slot], rates[slot])
    for slot in range(SLOTS):
        expected = row_of(theirs[slot])
        assert (expected - start[slot]).abs().min() > 10 * tolerance
        torch.testing.assert_close(weights[slot], expected.data, rtol=tolerance, atol=tolerance)
    assert ours.step.flatten().tolist() == [60, 40, 40]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_inactive_rows_keep_weights_and_moments_bit_for_bit(broken: float) -> None:
    weights = randoms(SLOTS, SIZE, seed=0, dtype=torch.float32)
    ours = new_optimizer(weights)
    rates = column(RATES, torch.float32)
    everyone = torch.ones(SLOTS, 1, dtype=torch.bool)
    ours.update(
        randoms(SLOTS, SIZE, seed=1, dtype=torch.float32), learning_rate=rates, active=everyone
    )
    states = (ours.weights, ours.mean, ours.square, ours.step)
    before = [state.clone() for state in states]
    grad = randoms(SLOTS, SIZE, seed=2, dtype=torch.float32)
    grad[1] = broken
    ours.update(grad, learning_rate=rates, active=torch.tensor([[True], [False], [True]]))
    for state, old in zip(states, before, strict=True):
        assert torch.equal(state[1], old[1])
        assert not torch.equal(state[0], old[0])
        assert state.isfinite().all()
    assert ours.weights is weights, "layers hold views of this very tensor"


def test_a_reset_row_is_a_fresh_optimizer_and_the_others_run_on() -> None:
    dtype, rates = torch.float64, column(RATES, torch.float64)
    active = torch.ones(SLOTS, 1, dtype=torch.bool)
    weights = randoms(SLOTS, SIZE, seed=0, dtype=dtype)
    undisturbed = weights.clone()
    ours, plain = new_optimizer(weights), new_optimizer(undisturbed)
    for step in range(5):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=dtype)
        for each in (ours, plain):
            each.update(grad, learning_rate=rates, active=active)
    ours.reset(1)
    fresh = reference(weights, 1)
    for step in range(5, 9):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=dtype)
        for each in (ours, plain):
            each.update(grad, learning_rate=rates, active=active)
        reference_step(fresh, grad[1], RATES[1])
    torch.testing.assert_close(weights[1], row_of(fresh).data, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(weights[1], undisturbed[1])
    assert torch.equal(weights[[0, 2]], undisturbed[[0, 2]])


@pytest.mark.parametrize("size", [1e-6, 0.1, 1.0, 1e4])
def test_clipping_is_torchs_for_each_slot(size: float) -> None:
    dtype, max_norm = torch.float64, (1.0, 0.3, 50.0)
    grads = [randoms(SLOTS, width, seed=width, dtype=dtype) * size for width in (3, 5, 8)]
    everyone = torch.ones(SLOTS, 1, dtype=torch.bool)
    norms, factors = clip_factors([(g, everyone) for g in grads], column(max_norm, dtype))
    for slot in range(SLOTS):
        rows = [torch.zeros_like(g[slot]).requires_grad_() for g in grads]
        for row, grad in zip(rows, grads, strict=True):
            row.grad = grad[slot].clone()
        norm = torch.nn.utils.clip_grad_norm_(rows, max_norm[slot])
        torch.testing.assert_close(norms[slot, 0], norm)
        for row, grad in zip(rows, grads, strict=True):
            torch.testing.assert_close(grad[slot] * factors[slot], row.grad, rtol=1e-10, atol=0)


def test_clipping_leaves_out_groups_that_a_slot_does_not_train() -> None:
    first = torch.tensor([[3.0, 4.0], [torch.nan, 1.0], [6.0, 8.0]])
    second = torch.tensor([[torch.inf], [2.0], [0.0]])
    trained = [torch.tensor([[True], [False], [True]]), torch.tensor([[False], [True], [True]])]
    norms, factors = clip_factors(
        list(zip([first, second], trained, strict=True)), torch.ones(SLOTS, 1)
    )
    assert torch.equal(norms, torch.tensor([[5.0], [2.0], [10.0]]))
    torch.testing.assert_close(factors, torch.tensor([[0.2], [0.5], [0.1]]))


def test_a_broken_gradient_shows_in_its_own_slots_norm_only() -> None:
    grad = torch.tensor([[torch.nan], [1.0], [torch.inf]])
    everyone = torch.ones(SLOTS, 1, dtype=torch.bool)
    norms, factors = clip_factors([(grad, everyone)], torch.full((SLOTS, 1), 2.0))
    assert norms.isfinite().flatten().tolist() == [False, True, False]
    assert factors[1] == 1


def test_a_slot_that_trains_nothing_has_norm_zero_and_factor_one() -> None:
    norms, factors = clip_factors(
        [(torch.ones(SLOTS, 2), torch.tensor([[False], [True], [False]]))], torch.ones(SLOTS, 1)
    )
    assert norms[0] == 0
    assert factors.flatten().tolist() == pytest.approx([1.0, 2**-0.5, 1.0], rel=1e-5)
