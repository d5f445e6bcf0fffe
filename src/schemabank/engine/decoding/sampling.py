"""Choosing tokens at random, as a pure function of a key and a position.

The noise of a choice is a hash of its row's key, the token's position and the vocabulary entry. So
neither the batch nor the number of slots changes a sample, and a captured step, which could not ask
a generator of the host, draws new noise from new positions. The choice is the Gumbel-max trick: the
token with the largest sum of logit and Gumbel noise has the distribution of the softmax (Gumbel
1954; Maddison et al., arXiv 1411.0030).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank.engine.dropout import hashed

# The midpoints of 2**23 equal parts of [0, 1] are float32 numbers above 0 and below 1, where both
# logarithms of the noise are finite.
UNIFORM_BITS = 23


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        keys: one for each prompt; equal keys give equal noise. See :func:`sample_keys`.
        temperature: the divisor of the logits.
        top_p: tokens are drawn from the smallest set with this probability (nucleus sampling, arXiv
            1904.09751).
    """

    keys: Sequence[int]
    temperature: float
    top_p: float = 1.0


def sample_keys(seed: int, samples: Sequence[tuple[str, int]]) -> list[int]:
    """Return the key of every ``(item id, sample)``, a signed 32-bit number."""
    digests = (hashlib.sha256(f"sample/{seed}/{n}/{i}".encode()).digest() for i, n in samples)
    return [int.from_bytes(digest[:4], "big", signed=True) for digest in digests]


def draw(logits: Tensor, sampling: Sampling, *, keys: Tensor, positions: Tensor) -> Tensor:
    """Draw a token for every row.

    Args:
        logits: ``(row, vocabulary)``.
        sampling: temperature and nucleus.
        keys: ``(row,)``, int32.
        positions: ``(row,)``, the drawn token's position.

    Returns:
        ``(row,)``, int64.
    """
    scaled = logits.float() / sampling.temperature
    if sampling.top_p < 1:
        scaled = scaled.masked_fill(~_nucleus(scaled, sampling.top_p), -torch.inf)
    return (scaled + _gumbel(scaled.shape[1], keys, positions)).argmax(-1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Mark the most likely tokens until their sum reaches ``top_p``; of equal ones the first."""
    shares, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    # Without its own share, the first token is always inside, and so is the one that reaches top_p.
    before = shares.cumsum(-1) - shares
    return torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before < top_p)


def _gumbel(vocabulary: int, keys: Tensor, positions: Tensor) -> Tensor:
    """Return Gumbel noise, ``(row, vocabulary)``."""
    rows = hashed(hashed(keys) ^ positions.to(torch.int32))
    columns = hashed(torch.arange(vocabulary, dtype=torch.int32, device=keys.device))
    # The hash's high bits are its good ones. The mask takes off copies of the sign bit.
    bits = (hashed(rows[:, None] ^ columns) >> (32 - UNIFORM_BITS)) & (2**UNIFORM_BITS - 1)
    uniform = (bits.float() + 0.5) / 2**UNIFORM_BITS
    return -torch.log(-torch.log(uniform))
