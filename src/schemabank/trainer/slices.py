"""The slices of ``molf`` in a trainer: of each layer's ranks, a step moves one slice alone.

The trainer's AdamW moves all of them, and those that were not to move are put back. Which one that
is depends on the moments after the step, as in :mod:`schemabank.engine.slices`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from schemabank.trainer.adapter import PeftAdapter


class MovedSlices:
    """The slices of one adapter.

    Args:
        adapter: whose ranks are divided.
        count: slices of a layer, of equally many ranks.
        epsilon: AdamW's.
    """

    def __init__(self, adapter: PeftAdapter, *, count: int, epsilon: float) -> None:
        self._adapter, self._count, self._epsilon = adapter, count, epsilon
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the weights from before a step, in memory that all steps share."""
        own = self._pairs()
        if _kinds(own) != _kinds(self._before):  # none yet, or the model was moved or cast
            self._before = [(torch.empty_like(a), torch.empty_like(b)) for a, b in own]
        for pair, kept in zip(own, self._before, strict=True):
            for weights, before in zip(pair, kept, strict=True):
                before.copy_(weights)

    @torch.no_grad()
    def undo_others(self, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Put all slices of a layer but the best one back; ``state`` is the optimizer's."""
        for (a, b), (old_a, old_b) in zip(self._pairs(), self._before, strict=True):
            if not state.get(a):  # a step that was left out, before which there was none
                continue
            of_ranks = self._scores(state[a]).sum(1) + self._scores(state[b]).sum(0)
            best = of_ranks.view(self._count, -1).sum(1).argmax()
            stays = torch.arange(len(of_ranks), device=a.device) // (len(of_ranks) // self._count)
            stays = stays != best
            # A choice of rows by a mask would make the host wait for the device.
            a.copy_(torch.where(stays[:, None], old_a, a))
            b.copy_(torch.where(stays, old_b, b))

    def _scores(self, moments: Mapping[str, Any]) -> Tensor:
        """What every weight's step should save of the loss (arXiv 2605.07111, equation 10)."""
        mean, square = moments["exp_avg"], moments["exp_avg_sq"]
        found: Tensor = mean.square() / (square.sqrt() + self._epsilon)
        return found

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self._adapter.a, self._adapter.b, strict=True))


def _kinds(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[torch.device, torch.dtype]]:
    return [(each.device, each.dtype) for pair in pairs for each in pair]
