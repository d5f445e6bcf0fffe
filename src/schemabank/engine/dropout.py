"""Dropout by hashes: what is dropped depends on run, step and place, and on no neighbour."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

MIX_IN, MIX_OUT = 0x2C1B3C6D, 0x297A2D39  # odd constants of a 32-bit integer hash (lowbias32)
BATCH_STRIDE = 2**20  # more tokens than any row has
INT32_RANGE = 2**32


class SlotDropout:
    """Dropout masks as a pure function of run, step, layer and position.

    A mask entry is a hash of its slot's key, the layer, the row of the batch, the token and the
    feature, so neither neighbours nor the padded width change it, and a captured step draws new
    masks from new keys.

    Args:
        rates: dropout probability of each slot.
        device: where the masks are made.

    Attributes:
        keys: ``(slot,)``, int32, one for every run and step; ``None`` in evaluation.
        adapters: whether adapters act at all; without them the model is the base model.
        only: the one slot whose rows are run; ``None``: all.
        width: tokens of the rows that are run, which layers with flattened rows do not see.
        strengths: ``(slot, block)``, what the adapters of a block are multiplied by in a training
            step; ``None`` in evaluation.
        mixes: ``(slot, batch, layer, map)``, how much of each of a layer's maps a row uses in a
            training step; ``None`` in evaluation, which takes the mean.
        routed: ``(slot,)``, what the routers' shares of the maps are multiplied by before they are
            added to ``mixes``; ``None`` without routers and in evaluation.
    """

    def __init__(self, rates: Sequence[float], *, device: torch.device) -> None:
        self.rates = [0.0] * len(rates)
        self.keys: Tensor | None = None
        self.adapters = True
        self.only: int | None = None
        self.width = 1
        self.strengths: Tensor | None = None
        self.mixes: Tensor | None = None
        self.routed: Tensor | None = None
        self.least = torch.zeros(len(rates), dtype=torch.int32, device=device)
        self.factor = torch.ones(len(rates), device=device)
        for slot, rate in enumerate(rates):
            self.set_rate(slot, rate)

    def set_rate(self, slot: int, rate: float) -> None:
        """Change a slot's probability of being dropped, rounded to a multiple of 2⁻³²."""
        self.rates[slot] = rate
        self.least[slot] = min(round(rate * INT32_RANGE), INT32_RANGE - 1) - INT32_RANGE // 2
        self.factor[slot] = 1 / (1 - rate)

    def begin_step(self, keys: Tensor | None) -> None:
        """Start a training step with :func:`dropout_keys`; ``None``: evaluation."""
        self.keys = keys

    def __call__(self, inputs: Tensor, layer: Tensor) -> tuple[Tensor, Tensor | None]:
        """Zero entries of ``inputs``: ``(slot, batch, token, feature)``.

        Returns:
            What is kept, not scaled, and the factor ``(slot,)`` that scales it, ``1 / (1 - rate)``;
            ``None`` for no dropout. Scaling later, in float32, spares bfloat16 a bias of 0.2 %.
        """
        if self.keys is None:
            return inputs, None
        _, batch, token, feature = inputs.shape
        rows = torch.arange(batch, dtype=torch.int32, device=inputs.device)[:, None] * BATCH_STRIDE
        rows = rows + torch.arange(token, dtype=torch.int32, device=inputs.device)
        row = hashed(hashed(self.keys + layer)[:, None, None] ^ rows)
        columns = hashed(torch.arange(feature, dtype=torch.int32, device=inputs.device))
        kept = hashed(row[..., None] ^ columns) >= self.least[:, None, None, None]
        # As a number: on a CPU much faster than choosing by a truth value. Compilers know that, and
        # refuse the view.
        bits = kept if torch.compiler.is_compiling() else kept.view(torch.uint8)
        return inputs * bits.to(inputs.dtype), self.factor


def dropout_keys(runs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the key of every ``(run seed, step)``, a signed 32-bit number."""
    digests = (hashlib.sha256(f"dropout/{seed}/{step}".encode()).digest() for seed, step in runs)
    return [int.from_bytes(digest[:4], "big", signed=True) for digest in digests]


def hashed(value: Tensor) -> Tensor:
    """Hash int32 values; the high bits of the result are the good ones."""
    value = value * MIX_IN
    value ^= value >> 15
    value *= MIX_OUT
    return value
