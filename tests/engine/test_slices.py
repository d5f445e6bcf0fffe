"""Slices of ranks: which weights they hold, which of them moves, and that all others stay."""

import pytest
import torch
from torch import Tensor

from schemabank.engine.optim import AdamWSettings, SlotAdamW
from schemabank.engine.slices import RankSlices, rank_slices, undo_other_slices

RANK, MAPS = 8, 2
SHAPES = ((5, 3), (4, 7), (6, 6))  # of layers: in, out
RANKS, COUNTS = (8, 8, 4, 6), (1, 2, 4, 3)  # of slots; the first has no slices
EXTRA = 5  # weights that belong to no rank, as those of a router
SIZE = sum((width + MAPS * out) * RANK for width, out in SHAPES) + EXTRA
SLOTS = len(RANKS)
EPSILON = 1e-3


def layers() -> list[tuple[Tensor, Tensor]]:
    """The places of every layer's A and B in a row, one layer after another."""
    found, places = [], torch.arange(SIZE, dtype=torch.int32)
    for width, out in SHAPES:
        a, b, places = places.split(
            [width * RANK, MAPS * RANK * out, len(places) - (width + MAPS * out) * RANK]
        )
        found.append((a.view(width, RANK), b.view(MAPS, RANK, out)))
    return found


def slices() -> RankSlices:
    found = rank_slices(layers(), size=SIZE, num_slots=SLOTS, most=max(COUNTS))
    for slot, (rank, count) in enumerate(zip(RANKS, COUNTS, strict=True)):
        found.configure(slot, rank=rank, count=count)
    return found


def of_slice(slot: int, layer: int, number: int) -> Tensor:
    """The places of a slice's weights, by the definition."""
    each = RANKS[slot] // COUNTS[slot]
    ranks = slice(number * each, (number + 1) * each)
    a, b = layers()[layer]
    return torch.cat([a[:, ranks].flatten(), b[:, ranks].flatten()]).long()


def randoms(seed: int) -> Tensor:
    return torch.randn(SLOTS, SIZE, generator=torch.Generator().manual_seed(seed))


def undone(mean: Tensor, square: Tensor, *, rounded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights before a step, and after all slices but one a layer were put back."""
    before, weights = randoms(1), randoms(2)
    undo_other_slices(
        weights,
        rounded,
        before,
        (mean, square),
        epsilon=torch.full((SLOTS, 1), EPSILON),
        slices=slices(),
    )
    return before, weights


def moved(slot: int, layer: int, before: Tensor, weights: Tensor) -> list[int]:
    """The slices of a layer that moved; each as a whole or not at all."""
    found = []
    for number in range(COUNTS[slot]):
        places = of_slice(slot, layer, number)
        changed = before[slot, places] != weights[slot, places]
        assert changed.all() or not changed.any()
        if changed.all():
            found.append(number)
    return found


def test_the_slice_with_the_highest_score_moves_and_all_others_stay() -> None:
    mean, square = randoms(3), randoms(4).square()
    before, weights = undone(mean, square)
    chosen = []
    for slot in range(1, SLOTS):
        for layer in range(len(SHAPES)):
            scores = [
                (mean[slot, p].square() / (square[slot, p].sqrt() + EPSILON)).sum().item()
                for p in (of_slice(slot, layer, n) for n in range(COUNTS[slot]))
            ]
            (number,) = moved(slot, layer, before, weights)
            assert number == max(range(COUNTS[slot]), key=scores.__getitem__)
            chosen.append(number)
    assert len(set(chosen)) > 2, "not always the same"


def test_a_slot_without_slices_moves_as_a_whole() -> None:
    before, weights = undone(randoms(3), randoms(4).square())
    assert torch.equal(weights[0], randoms(2)[0])
    assert not torch.equal(weights[1], before[1])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_of_equal_scores_the_first_slice_moves(value: float) -> None:
    same = torch.full((SLOTS, SIZE), value)
    before, weights = undone(same, same)
    for slot in range(1, SLOTS):
        for layer in range(len(SHAPES)):
            assert moved(slot, layer, before, weights) == [0]


def test_what_pads_a_smaller_rank_never_moves() -> None:
    before, weights = undone(randoms(3), randoms(4).square())
    for a, b in layers():
        for places in (a[:, RANKS[2] :], b[:, RANKS[2] :]):
            at = places.flatten().long()
            assert torch.equal(before[2, at], weights[2, at])


def test_a_slot_is_divided_anew_for_its_next_run() -> None:
    found = slices()
    assert found.slice_of[1].tolist() == [0] * 4 + [1] * 4
    found.configure(1, rank=6, count=3)
    assert found.slice_of[1, :6].tolist() == [0, 0, 1, 1, 2, 2]
    found.configure(1, rank=6, count=1)
    assert found.slice_of[1].tolist() == [0] * RANK


def test_the_rounded_copy_has_the_weights_that_were_put_back() -> None:
    rounded = torch.zeros(SLOTS, SIZE, dtype=torch.bfloat16)
    before, weights = undone(randoms(3), randoms(4).square(), rounded=rounded)
    assert torch.equal(rounded, weights.bfloat16())
    assert not torch.equal(rounded, before.bfloat16())


def optimizers(*has_slices: bool) -> list[SlotAdamW]:
    columns = (torch.full((SLOTS, 1), v) for v in (0.9, 0.99, EPSILON, 0.3, 8.0))
    settings = AdamWSettings(*columns)
    faster = torch.arange(SIZE) % 3 == 0
    return [
        SlotAdamW(randoms(0), settings, faster=faster, slices=slices() if has else None)
        for has in has_slices
    ]


def active_in(step: int) -> Tensor:
    return torch.tensor([[True], [True], [step != 2], [True]])


def update(optimizer: SlotAdamW, step: int) -> None:
    rate = torch.full((SLOTS, 1), 0.01)
    optimizer.update(randoms(step + 9), learning_rate=rate, active=active_in(step))


def test_all_moments_are_those_of_adam_and_a_row_without_slices_keeps_every_bit() -> None:
    sliced, plain = optimizers(True, False)
    for step in range(5):
        before = sliced.weights.clone()
        for each in (sliced, plain):
            update(each, step)
        for ours, theirs in zip(sliced.state[1:], plain.state[1:], strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(sliced.weights[0], plain.weights[0])
        for slot in range(1, SLOTS):
            for layer in range(len(SHAPES)):
                found = moved(slot, layer, before, sliced.weights)
                assert len(found) == active_in(step)[slot]


def test_the_slice_that_moves_takes_adams_step_with_its_own_rates() -> None:
    """With weight decay, and another learning rate for some weights."""
    sliced, plain = optimizers(True, False)
    for each in (sliced, plain):
        update(each, 0)
    for slot in range(1, SLOTS):
        (number,) = moved(slot, 0, randoms(0), sliced.weights)
        places = of_slice(slot, 0, number)
        assert torch.equal(sliced.weights[slot, places], plain.weights[slot, places])
