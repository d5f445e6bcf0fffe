"""Cross-entropy and its gradient in two passes over the logits, as a CUDA kernel.

The logits of all rows are too large for any cache. So the kernel takes the time of reading them
twice and writing their gradient once. The first pass keeps a running
maximum and a running sum of exponentials (arXiv 1805.02867).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 16
LOG2_E = tl.constexpr(1.4426950408889634)
# The running maximum starts here and not at minus infinity: if all logits of the first block were
# minus infinity, the difference of the two would make the sum NaN.
LOWEST = tl.constexpr(-1e38)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return every row's loss in nats, float32, and its gradient in the logits' type.

    Args:
        logits: ``(row, vocabulary)``, of at most 32 bits.
        targets: ``(row,)``.
    """
    # The kernel finds a row by its size alone: a column of a wider tensor would be misread.
    logits, targets = logits.contiguous(), targets.contiguous()
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    gradient = torch.empty_like(logits)
    _cross_entropy_kernel[len(logits),](
        logits, targets, losses, gradient, SIZE=logits.shape[1],
        BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return losses, gradient


@triton.jit
def _cross_entropy_kernel(
    logits, targets, losses, gradient, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute one row. Scores are in units of log 2, because the hardware has ``exp2`` only."""
    row = tl.program_id(0).to(tl.int64)  # row * SIZE may exceed 32 bits
    logits += row * SIZE
    gradient += row * SIZE
    target = tl.load(targets + row)
    columns = tl.arange(0, BLOCK)
    peak = LOWEST
    total = 0.0
    for start in range(0, SIZE, BLOCK):
        inside = columns < SIZE - start
        score = tl.load(logits + start + columns, mask=inside, other=-float("inf"))
        score = score.to(tl.float32) * LOG2_E
        # The sum so far is relative to the old maximum: no exponential ever overflows.
        higher = tl.maximum(peak, tl.max(score))
        total = total * tl.exp2(peak - higher) + tl.sum(tl.exp2(score - higher))
        peak = higher
    log_sum = peak + tl.log2(total)
    own = tl.load(logits + target).to(tl.float32) * LOG2_E
    tl.store(losses + row, (log_sum - own) / LOG2_E)
    for start in range(0, SIZE, BLOCK):
        inside = columns < SIZE - start
        score = tl.load(logits + start + columns, mask=inside, other=-float("inf"))
        chance = tl.exp2(score.to(tl.float32) * LOG2_E - log_sum)
        slope = tl.where(start + columns == target, chance - 1, chance)
        tl.store(gradient + start + columns, slope.to(gradient.dtype.element_ty), mask=inside)
