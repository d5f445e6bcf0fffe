"""Losses and gradients at labelled positions against plain cross entropy with autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from schemabank.engine import loss
from schemabank.engine.batches import Batch
from schemabank.engine.loss import (
    gather_labelled,
    labelled_divergences,
    labelled_losses,
    mean_per_slot,
    token_divergences,
    token_losses,
)

ROWS, HIDDEN, VOCABULARY = 11, 5, 13


def randoms(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels() -> Tensor:
    return torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(5))


def capped_head(hidden: Tensor) -> Tensor:
    """A linear output layer with a soft cap, as Gemma has."""
    return torch.tanh(hidden @ randoms(HIDDEN, VOCABULARY, seed=9) / 3) * 3


@pytest.mark.parametrize("chunk_rows", [1, 4, ROWS - 1, ROWS, 1024])
def test_losses_and_gradients_are_plain_cross_entropys(
    chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_ROWS", chunk_rows)
    ours, theirs = (randoms(ROWS, HIDDEN, seed=1).requires_grad_() for _ in range(2))
    found = token_losses(ours, labels(), capped_head)
    expected = cross_entropy(capped_head(theirs), labels(), reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    upstream = randoms(ROWS, seed=2)
    upstream[3] = 0
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-13)
    assert not ours.grad[3].any()
    assert ours.grad[2].any()


@pytest.mark.parametrize("rows", [1, 4, ROWS - 1, ROWS, 1024])
def test_every_product_of_the_output_layer_has_one_size_and_few_rows_are_computed_twice(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one of another size, a row's sum may be rounded in another order."""
    num_chunks = -(-ROWS // rows)
    monkeypatch.setattr(loss, "CHUNK_ROWS", rows)
    monkeypatch.setattr(loss, "PAIRED_ROWS", rows)
    sizes: list[int] = []

    def head(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return capped_head(hidden)

    hidden = randoms(ROWS, HIDDEN, seed=1).requires_grad_()
    token_losses(hidden, labels(), head).sum().backward()
    assert len(sizes) == num_chunks
    token_divergences(hidden, hidden, head).sum().backward()
    assert len(sizes) == 3 * num_chunks
    assert len(set(sizes)) == 1
    assert ROWS <= num_chunks * sizes[0] < ROWS + num_chunks


@pytest.mark.parametrize("rows", [1, 4, ROWS - 1, ROWS, 1024])
def test_divergences_and_gradients_are_those_of_both_kl_divergences(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "PAIRED_ROWS", rows)
    ours, theirs = ([randoms(ROWS, HIDDEN, seed=s).requires_grad_() for s in (1, 2)] for _ in "ab")
    found = token_divergences(*ours, capped_head)
    p, q = (capped_head(each).log_softmax(-1) for each in theirs)
    expected = sum(
        kl_div(a, b, log_target=True, reduction="none").sum(-1) for a, b in [(p, q), (q, p)]
    )
    torch.testing.assert_close(found, expected / 2, rtol=1e-12, atol=1e-13)
    upstream = randoms(ROWS, seed=3)
    found.backward(upstream)
    (expected / 2).backward(upstream)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-11, atol=1e-13)


def test_equal_predictions_do_not_diverge() -> None:
    hidden = randoms(ROWS, HIDDEN, seed=1).bfloat16().requires_grad_()
    weight = randoms(HIDDEN, VOCABULARY, seed=9).bfloat16()
    found = token_divergences(hidden, hidden.detach().clone(), lambda h: h @ weight)
    assert found.dtype == torch.float32
    assert not found.any()
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert gradient.dtype == torch.bfloat16


def test_divergences_of_padded_labels_are_left_out() -> None:
    positions = torch.tensor([[[0, 1, 2]], [[1, 2, 0]]])
    weights = torch.tensor([[[1.0, 1, 0]], [[1.0, 0, 0]]])
    batch = Batch(
        tokens=torch.zeros(2, 1, 3, dtype=torch.int64),
        real=torch.ones(2, 1, 3),
        positions=positions,
        labels=torch.zeros(2, 1, 3, dtype=torch.int64),
        weights=weights,
    )
    first, second = (randoms(2, 3, HIDDEN, seed=s) for s in (1, 2))
    found = labelled_divergences(first, second, batch, capped_head).view(2, 3)
    for slot, label in [(0, 0), (0, 1), (1, 0)]:
        at = positions[slot, 0, label]
        pair = [states[slot, at][None] for states in (first, second)]
        torch.testing.assert_close(found[slot, label], token_divergences(*pair, capped_head)[0])
    assert not found[weights[:, 0] == 0].any()


def test_gradients_pass_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ROWS", 2)
    hidden = randoms(3, HIDDEN, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: token_losses(h, labels()[:3], capped_head), hidden)


def test_the_loss_of_bfloat16_states_is_taken_in_float32() -> None:
    weight = randoms(HIDDEN, VOCABULARY, seed=9).bfloat16()
    hidden = randoms(ROWS, HIDDEN, seed=1).bfloat16().requires_grad_()
    found = token_losses(hidden, labels(), lambda h: h @ weight)
    assert found.dtype == torch.float32
    expected = cross_entropy((hidden @ weight).float(), labels(), reduction="none")
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert gradient.dtype == torch.bfloat16


def test_without_gradients_the_head_keeps_no_graph() -> None:
    seen = []

    def watched(hidden: Tensor) -> Tensor:
        seen.append((torch.is_grad_enabled(), hidden.requires_grad))
        return capped_head(hidden)

    found = token_losses(randoms(ROWS, HIDDEN, seed=1), labels(), watched)
    assert seen == [(False, False)]
    assert not found.requires_grad


def test_gather_labelled_by_hand() -> None:
    hidden = torch.arange(4 * 3 * 2.0).view(4, 3, 2)
    positions = torch.tensor([[[0, 2], [1, 1]], [[2, 0], [0, 0]]])
    picked = gather_labelled(hidden, positions)
    rows = [(0, 0), (0, 2), (1, 1), (1, 1), (2, 2), (2, 0), (3, 0), (3, 0)]
    assert torch.equal(picked, torch.stack([hidden[row, token] for row, token in rows]))


def test_gather_labelled_sends_gradients_back_to_where_they_came_from() -> None:
    hidden = torch.zeros(2, 3, 1, requires_grad=True)
    picked = gather_labelled(hidden, torch.tensor([[[0, 2]], [[1, 1]]]))
    picked.backward(torch.tensor([[1.0], [2.0], [4.0], [8.0]]))
    assert hidden.grad.squeeze(-1).tolist() == [[1, 0, 2], [0, 12, 0]]


@pytest.mark.parametrize("num_labels", [(2, 1, 2, 0), (0, 0, 1, 1), (0, 0, 0, 0)])
def test_losses_of_labels_are_those_at_their_positions(num_labels: tuple[int, ...]) -> None:
    hidden = randoms(4, 3, HIDDEN, seed=5).requires_grad_()
    weight = randoms(HIDDEN, VOCABULARY, seed=6)
    positions = torch.tensor([[[0, 2], [1, 1]], [[2, 0], [0, 1]]])
    targets = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [0, 1]]])
    weights = torch.tensor([[float(i < count) for i in range(2)] for count in num_labels])
    batch = Batch(torch.zeros(0), torch.zeros(0), positions, targets, weights.view(2, 2, 2))
    found = labelled_losses(hidden, batch, lambda h: h @ weight)
    rows = gather_labelled(hidden, positions)
    expected = (
        torch.nn.functional.cross_entropy(rows @ weight, targets.flatten(), reduction="none")
        * weights.flatten()
    )
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(losses.sum(), hidden)[0] for losses in (found, expected)]
    torch.testing.assert_close(*grads)


def test_mean_per_slot_by_hand() -> None:
    weights = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    losses = torch.tensor([1.0, 2.0, 6.0, 100.0, 5.0, 100.0, 100.0, 100.0])
    assert mean_per_slot(losses, weights).tolist() == [3.0, 5.0]


def test_undefined_losses_of_padding_and_slots_without_labels_count_zero() -> None:
    losses = torch.tensor([1.0, torch.nan, torch.inf, torch.nan], requires_grad=True)
    weights = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    means = mean_per_slot(losses, weights)
    assert means.tolist() == [1.0, 0.0]
    means.sum().backward()
    assert losses.grad.tolist() == [1.0, 0.0, 0.0, 0.0]
