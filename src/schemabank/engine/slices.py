"""Slices of the adapters' ranks, of which a step moves one in every layer (arXiv 2605.07111).

A slice is some of a layer's ranks, with the weights of A and B that belong to them: a smaller LoRA.
All slices act in every step, and all get new moments. But only that slice of a layer moves for
which ``Σ m² / (√v + ε)`` over its weights is the largest, which is the loss that a step of it
should save (equation 10; slices of a layer have one size and one learning rate). The moments are
those before the correction of their bias, as in the authors' code:
github.com/11785T23/molf/blob/cfa4e33a83d35f16ef51ce38244288d51082ec6e/src/optim/molf_metric.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankSlices:
    """Which weights of a flat row belong to which rank of which layer, and ranks to which slice.

    Attributes:
        members: ``(layer * rank, longest)``, the places in the row of a rank's weights; -1: none.
        rank_of: ``(size,)``, for each weight the number of its rank in ``members``.
        slice_of: ``(slot, rank)``, the slice of each rank; a slot without slices has 0 everywhere.
        numbers: ``(slice,)``, the slices of the slot with the most.
    """

    members: Tensor
    rank_of: Tensor
    slice_of: Tensor
    numbers: Tensor

    def configure(self, slot: int, *, rank: int, count: int) -> None:
        """Divide a slot's ranks into as many slices; 1 leaves them together."""
        assert rank % count == 0
        ranks = torch.arange(self.slice_of.shape[1], dtype=torch.int32)
        # What pads a smaller rank gets numbers beyond the last slice's and never moves from zero.
        self.slice_of[slot] = ranks // (rank // count) if count > 1 else torch.zeros_like(ranks)


def rank_slices(
    layers: Sequence[tuple[Tensor, Tensor]], *, size: int, num_slots: int, most: int
) -> RankSlices:
    """Return the slices of a flat group, with none in any slot yet.

    Args:
        layers: the places in a row of every layer's ``A: (in, rank)`` and ``B: (map, rank, out)``.
        size: of a row. What belongs to no rank, such as a router, is zero where there are slices.
        num_slots: number of rows.
        most: slices of the slot with the most.
    """
    rank, device = layers[0][0].shape[1], layers[0][0].device
    by_rank = [torch.cat([a.T, b.transpose(0, 1).flatten(1)], dim=1) for a, b in layers]
    longest = max(places.shape[1] for places in by_rank)
    pad = torch.nn.functional.pad
    members = torch.cat([pad(p, (0, longest - p.shape[1]), value=-1) for p in by_rank])
    numbers = torch.arange(len(members), dtype=torch.int32, device=device)
    rank_of = torch.zeros(size, dtype=torch.int32, device=device)
    rank_of[members[members >= 0]] = numbers[:, None].expand_as(members)[members >= 0]
    slice_of = torch.zeros(num_slots, rank, dtype=torch.int32, device=device)
    return RankSlices(members, rank_of, slice_of, torch.arange(most, device=device))


def undo_other_slices(
    weights: Tensor,
    rounded: Tensor | None,
    before: Tensor,
    moments: tuple[Tensor, Tensor],
    *,
    epsilon: Tensor,
    slices: RankSlices,
) -> None:
    """Put all slices but one of every layer back to where they were before a step.

    A function of its own, so that the update itself runs the same code whether or not another slot
    has slices: what a compiler fuses with it could change its last bit.

    Args:
        weights: ``(slot, size)`` after the step, changed in place.
        rounded: their copy in another type, or ``None``.
        before: ``(slot, size)``, the weights before the step.
        moments: Adam's after the step, ``(slot, size)`` each.
        epsilon: ``(slot, 1)``, Adam's.
        slices: of all slots.
    """
    mean, square = moments
    scores = mean.square() / (square.sqrt() + epsilon)
    # Weights are looked up by place and summed along a row. Adding to sums by place would be done
    # in any order on a GPU, and the same run would not give the same bits again.
    found = scores.index_select(1, slices.members.clamp(min=0).flatten())
    found = found.unflatten(1, slices.members.shape)
    of_ranks = torch.where(slices.members >= 0, found, 0.0).sum(-1)
    of_ranks = of_ranks.unflatten(1, (-1, slices.slice_of.shape[1]))  # (slot, layer, rank)
    is_in = slices.slice_of[:, None] == slices.numbers[:, None]  # (slot, slice, rank)
    of_slices = torch.where(is_in[:, None], of_ranks[:, :, None], 0.0).sum(-1)
    best = of_slices.argmax(-1, keepdim=True)  # (slot, layer, 1), the first of equal ones
    moves = (slices.slice_of[:, None] == best).flatten(1)
    weights.copy_(torch.where(moves.index_select(1, slices.rank_of), weights, before))
    if rounded is not None:
        rounded.copy_(weights)
