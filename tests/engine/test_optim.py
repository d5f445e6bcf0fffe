"""Slot-wise AdamW and clipping against torch's own, one optimizer a slot."""

import pytest
import torch
from torch import Tensor

from schemabank.engine.optim import AdamWSettings, SlotAdamW, clip_factors

SLOTS, SIZE = 3, 7
BETA1 = (0.9, 0.5, 0.0)
BETA2 = (0.999, 0.9, 0.99)
EPSILON = (1e-8, 1e-3, 1e-6)
DECAY = (0.01, 0.0, 0.3)
RATIO = (4.0, 1.0, 16.0)
RATES = (1e-1, 1e-3, 1e-2)
EVERYONE = torch.ones(SLOTS, 1, dtype=torch.bool)


def column(values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def new_optimizer(weights: Tensor) -> SlotAdamW:
    coefficients = (column(v, weights.dtype) for v in (BETA1, BETA2, EPSILON, DECAY, RATIO))
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
    ours.update(
        randoms(SLOTS, SIZE, seed=1, dtype=torch.float32), learning_rate=rates, active=EVERYONE
    )
    states = ours.state
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
    weights = randoms(SLOTS, SIZE, seed=0, dtype=dtype)
    undisturbed = weights.clone()
    ours, plain = new_optimizer(weights), new_optimizer(undisturbed)
    for step in range(5):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=dtype)
        for each in (ours, plain):
            each.update(grad, learning_rate=rates, active=EVERYONE)
    ours.reset(1)
    fresh = reference(weights, 1)
    for step in range(5, 9):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=dtype)
        for each in (ours, plain):
            each.update(grad, learning_rate=rates, active=EVERYONE)
        reference_step(fresh, grad[1], RATES[1])
    torch.testing.assert_close(weights[1], row_of(fresh).data, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(weights[1], undisturbed[1])
    assert torch.equal(weights[[0, 2]], undisturbed[[0, 2]])


def trained_optimizer(dtype: torch.dtype, *, rounded: Tensor | None = None) -> SlotAdamW:
    """An optimizer whose rows have moments and step counts."""
    weights = randoms(SLOTS, SIZE, seed=0, dtype=dtype)
    coefficients = (column(v, dtype) for v in (BETA1, BETA2, EPSILON, DECAY, RATIO))
    ours = SlotAdamW(weights, AdamWSettings(*coefficients), rounded=rounded)
    for step in range(5):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=dtype)
        ours.update(grad, learning_rate=column(RATES, dtype), active=EVERYONE)
    return ours


def test_a_fresh_row_is_a_new_optimizer_bit_for_bit_and_the_others_run_on() -> None:
    rates = column(RATES, torch.float32)
    ours, plain = trained_optimizer(torch.float32), trained_optimizer(torch.float32)
    new = new_optimizer(ours.weights.clone())
    fresh = torch.tensor([[False], [True], [False]])
    for step in range(5, 9):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=torch.float32)
        starts = fresh & (step == 5)
        ours.update(grad, learning_rate=rates, active=EVERYONE, fresh=starts)
        for each in (plain, new):
            each.update(grad, learning_rate=rates, active=EVERYONE)
        for state, others, started in zip(ours.state, plain.state, new.state, strict=True):
            assert torch.equal(state[1], started[1])
            assert torch.equal(state[[0, 2]], others[[0, 2]])
    assert ours.step.flatten().tolist() == [9, 4, 9]
    assert not torch.equal(ours.weights[1], plain.weights[1])


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_some_weights_have_a_multiple_of_the_learning_rate(decay: float) -> None:
    """As two parameter groups of torch's AdamW; a multiple of 1 is no multiple, bit for bit."""
    weights = randoms(SLOTS, SIZE, seed=0, dtype=torch.float64)
    faster = torch.tensor([False, True, True, False, False, True, False])
    columns = [column(v, weights.dtype) for v in (BETA1, BETA2, EPSILON, (decay,) * 3, RATIO)]
    theirs = [
        torch.optim.AdamW(
            [
                {"params": [row[~faster]]},
                {"params": [row[faster]], "lr": RATIO[slot] * RATES[slot]},
            ],
            lr=RATES[slot],
            betas=(BETA1[slot], BETA2[slot]),
            eps=EPSILON[slot],
            weight_decay=decay,
        )
        for slot, row in enumerate(weights.clone())
    ]
    plain = new_optimizer(weights.clone())
    ours = SlotAdamW(weights, AdamWSettings(*columns), faster=faster)
    for step in range(5):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=weights.dtype)
        for each in (ours, plain):
            each.update(grad, learning_rate=column(RATES, weights.dtype), active=EVERYONE)
        for slot, optimizer in enumerate(theirs):
            for group, of_group in zip(optimizer.param_groups, (~faster, faster), strict=True):
                group["params"][0].grad = grad[slot][of_group]
            optimizer.step()
    for slot, optimizer in enumerate(theirs):
        for group, of_group in zip(optimizer.param_groups, (~faster, faster), strict=True):
            expected = group["params"][0].data
            torch.testing.assert_close(weights[slot][of_group], expected, rtol=1e-12, atol=1e-12)
    if decay == DECAY[2]:
        assert not torch.equal(weights[2], plain.weights[2])


def test_a_multiple_of_one_changes_no_bit() -> None:
    plain = new_optimizer(randoms(SLOTS, SIZE, seed=0, dtype=torch.float32))
    faster = torch.arange(SIZE) % 2 == 0
    ours = SlotAdamW(plain.weights.clone(), plain.settings, faster=faster)
    for step in range(5):
        grad = randoms(SLOTS, SIZE, seed=step, dtype=torch.float32)
        for each in (ours, plain):
            each.update(grad, learning_rate=column(RATES, torch.float32), active=EVERYONE)
    assert torch.equal(ours.weights[1], plain.weights[1]), "slot 1 has a multiple of 1"
    assert torch.equal(ours.weights[:, ~faster], plain.weights[:, ~faster])
    assert not torch.equal(ours.weights[0, faster], plain.weights[0, faster])


@pytest.mark.parametrize("broken", [1.0, torch.nan, torch.inf])
def test_a_fresh_row_that_is_not_active_forgets_its_moments_and_keeps_its_weights(
    broken: float,
) -> None:
    """So a stage whose first step is skipped, or trains other groups, still starts afresh."""
    rates = column(RATES, torch.float32)
    ours, reset = trained_optimizer(torch.float32), trained_optimizer(torch.float32)
    before = ours.weights.clone()
    grad = randoms(SLOTS, SIZE, seed=7, dtype=torch.float32)
    grad[1] *= broken
    fresh = torch.tensor([[False], [True], [False]])
    ours.update(grad, learning_rate=rates, active=~fresh, fresh=fresh)
    reset.reset(1)
    reset.update(grad, learning_rate=rates, active=~fresh)
    for state, other in zip(ours.state, reset.state, strict=True):
        assert torch.equal(state, other)
    assert torch.equal(ours.weights[1], before[1])
    assert not any(state[1].any() for state in ours.state[1:])
    grad = randoms(SLOTS, SIZE, seed=8, dtype=torch.float32)
    new = new_optimizer(ours.weights.clone())
    for each in (ours, new):
        each.update(grad, learning_rate=rates, active=EVERYONE)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(ours.state, new.state, strict=True))


def test_inactive_rows_keep_every_bit_beside_fresh_ones() -> None:
    ours = trained_optimizer(torch.float32)
    before = [state.clone() for state in ours.state]
    ours.update(
        torch.full((SLOTS, SIZE), torch.nan),
        learning_rate=column(RATES, torch.float32),
        active=torch.zeros(SLOTS, 1, dtype=torch.bool),
        fresh=torch.tensor([[True], [False], [False]]),
    )
    for state, old in zip(ours.state, before, strict=True):
        assert torch.equal(state[1:], old[1:])
    assert torch.equal(ours.weights, before[0])


def test_the_factor_scales_the_gradient_of_every_row() -> None:
    dtype, factor = torch.float64, column((0.5, 1.0, 2.0), torch.float64)
    ours, plain = trained_optimizer(dtype), trained_optimizer(dtype)
    grad, rates = randoms(SLOTS, SIZE, seed=9, dtype=dtype), column(RATES, dtype)
    ours.update(grad, factor=factor, learning_rate=rates, active=EVERYONE)
    plain.update(grad * factor, learning_rate=rates, active=EVERYONE)
    assert all(map(torch.equal, ours.state, plain.state))


def test_a_gradient_of_another_type_is_taken_in_the_weights_type() -> None:
    ours, plain = trained_optimizer(torch.float32), trained_optimizer(torch.float32)
    grad = randoms(SLOTS, SIZE, seed=9, dtype=torch.float32).bfloat16()
    settings = {"learning_rate": column(RATES, torch.float32), "active": EVERYONE}
    ours.update(grad, factor=torch.full((SLOTS, 1), 0.3), **settings)
    plain.update(grad.float() * 0.3, **settings)
    assert all(map(torch.equal, ours.state, plain.state))


def test_the_rounded_copy_follows_the_weights() -> None:
    rounded = torch.zeros(SLOTS, SIZE, dtype=torch.bfloat16)
    ours = trained_optimizer(torch.float32, rounded=rounded)
    assert torch.equal(rounded, ours.weights.bfloat16())
    plain = trained_optimizer(torch.float32)
    assert torch.equal(ours.weights, plain.weights), "steps add up in float32"
    before = rounded.clone()
    ours.update(
        randoms(SLOTS, SIZE, seed=9, dtype=torch.float32),
        learning_rate=column((0.1, 0.1, 0.1), torch.float32),
        active=torch.tensor([[True], [False], [True]]),
    )
    assert torch.equal(rounded, ours.weights.bfloat16())
    assert torch.equal(rounded[1], before[1])
    assert not torch.equal(rounded[0], before[0])


@pytest.mark.parametrize("size", [1e-6, 0.1, 1.0, 1e4])
def test_clipping_is_torchs_for_each_slot(size: float) -> None:
    dtype, max_norm = torch.float64, (1.0, 0.3, 50.0)
    grads = [randoms(SLOTS, width, seed=width, dtype=dtype) * size for width in (3, 5, 8)]
    norms, factors = clip_factors([(g, EVERYONE) for g in grads], column(max_norm, dtype))
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
    norms, factors = clip_factors([(grad, EVERYONE)], torch.full((SLOTS, 1), 2.0))
    assert norms.isfinite().flatten().tolist() == [False, True, False]
    assert factors[1] == 1


def test_a_slot_that_trains_nothing_has_norm_zero_and_factor_one() -> None:
    norms, factors = clip_factors(
        [(torch.ones(SLOTS, 2), torch.tensor([[False], [True], [False]]))], torch.ones(SLOTS, 1)
    )
    assert norms[0] == 0
    assert factors.flatten().tolist() == pytest.approx([1.0, 2**-0.5, 1.0], rel=1e-5)
