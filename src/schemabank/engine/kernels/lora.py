"""LoRA's first product with its dropout, for adapters with a common input, as CUDA kernels.

``low_j = scale · (mask_j ∘ x) A_j`` for up to three adapters of every slot. As single operations,
each adapter's masked input would be written to memory and read again, three times the input's own
size. Here the input is read once. The kernels compute the masks on the fly, by the hash of
:mod:`schemabank.engine.dropout`, and keep them for the backward pass in one byte for each entry of
the input: bit ``j`` is the mask of adapter ``j``.

Letters in the kernels: ``m`` rows of a slot, ``f`` features, ``r`` ranks.
"""

from collections.abc import Sequence, Sized

import torch
import triton
import triton.language as tl
from torch import Tensor

from schemabank.engine.dropout import BATCH_STRIDE, MIX_IN, MIX_OUT

MAX_ADAPTERS = 3
# Rows, features and warps of a block, first for few rows in all slots together, then for many. The
# sizes for many rows were the fastest of a grid on an H200. The others are smaller, so that there
# are enough blocks to keep the GPU busy.
SMALL_ROWS = 4096
BLOCKS = {
    "down": ((16, 128, 2), (32, 128, 4)),
    "input": ((32, 64, 2), (32, 128, 4)),
    "weights": ((32, 32, 2), (16, 64, 4)),
}
# The largest row of A, in bytes, and the shared memory (an H200's) that kernels are tested with.
TESTED_ROW_BYTES, TESTED_ROOM = 256, 227 * 1024
_MIX_IN, _MIX_OUT = tl.constexpr(MIX_IN), tl.constexpr(MIX_OUT)
_BATCH_STRIDE = tl.constexpr(BATCH_STRIDE)


def fits(device: torch.device, *, rank: int, itemsize: int) -> bool:
    """Say whether the kernels' tiles should fit into the device's shared memory.

    The limit is the tested size, scaled to the device.

    Args:
        device: a GPU.
        rank: of the adapters.
        itemsize: bytes of an input's entry.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    room: int = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return _block_rank(rank) * itemsize * TESTED_ROOM <= TESTED_ROW_BYTES * room


class MaskedDown(torch.autograd.Function):
    """See :func:`masked_down`."""

    @staticmethod
    def forward(ctx, inputs, keys, layers, least, scale, *weights):
        low, mask = _forward(inputs, keys, layers, least, scale, list(weights))
        ctx.save_for_backward(inputs, mask, scale, *weights)
        return low

    @staticmethod
    def backward(ctx, upstream):
        inputs, mask, scale, *weights = ctx.saved_tensors
        upstream = upstream.contiguous()
        to_inputs = _input_gradient(upstream, mask, scale, weights)
        to_weights = _weight_gradients(inputs, mask, scale, upstream)
        return to_inputs.view_as(inputs), None, None, None, None, *to_weights.unbind()


def masked_down(
    inputs: Tensor,
    weights: Sequence[Tensor],
    *,
    keys: Tensor,
    layers: Tensor,
    least: Tensor,
    scale: Tensor,
) -> Tensor:
    """Apply dropout and the first matrix of up to three adapters with the same input.

    Args:
        inputs: ``(slot, batch, token, in)``.
        weights: ``(slot, in, rank)`` each.
        keys: ``(slot,)``, as in :class:`SlotDropout`.
        layers: ``(adapter,)``, the adapters' layer keys.
        least: ``(slot,)``, as in :class:`SlotDropout`.
        scale: ``(slot,)``, the factor of the result.

    Returns:
        ``(adapter, slot, batch * token, rank)``.
    """
    result: Tensor = MaskedDown.apply(inputs, keys, layers, least, scale, *weights)
    return result


@torch.library.custom_op("schemabank::masked_down", mutates_args=())
def _forward(
    inputs: Tensor,
    keys: Tensor,
    layers: Tensor,
    least: Tensor,
    scale: Tensor,
    weights: list[Tensor],
) -> tuple[Tensor, Tensor]:
    slots, batch, tokens, width = inputs.shape
    rows, rank = batch * tokens, weights[0].shape[2]
    low = inputs.new_empty(len(weights), slots, rows, rank)
    mask = inputs.new_empty(slots, rows, width, dtype=torch.uint8)
    # A slot's weights are contiguous, but the next slot's begin a whole flat row further on (see
    # `FlatGroup`), so the kernels are given the stride of a slot.
    blocks = _kernel_constants("down", weights, rank, slots * rows)
    _down_kernel[triton.cdiv(rows, blocks["BM"]), slots](
        inputs.contiguous(), *_three_weights(weights), keys, layers, least, scale, low, mask,
        rows, tokens, width, rank, weights[0].stride(0), slots, **blocks,
    )  # fmt: skip
    return low, mask


@_forward.register_fake
def _(inputs, keys, layers, least, scale, weights):
    slots, batch, tokens, width = inputs.shape
    low = inputs.new_empty(len(weights), slots, batch * tokens, weights[0].shape[2])
    return low, inputs.new_empty(slots, batch * tokens, width, dtype=torch.uint8)


@torch.library.custom_op("schemabank::masked_down_input", mutates_args=())
def _input_gradient(upstream: Tensor, mask: Tensor, scale: Tensor, weights: list[Tensor]) -> Tensor:
    slots, rows, width = mask.shape
    rank = upstream.shape[-1]
    result = upstream.new_empty(mask.shape)
    blocks = _kernel_constants("input", weights, rank, slots * rows)
    grid = (triton.cdiv(rows, blocks["BM"]), triton.cdiv(width, blocks["BF"]), slots)
    _input_kernel[grid](
        upstream, *_three_weights(weights), scale, mask, result,
        rows, width, rank, weights[0].stride(0), slots, **blocks,
    )  # fmt: skip
    return result


@_input_gradient.register_fake
def _(upstream, mask, scale, weights):
    return upstream.new_empty(mask.shape)


@torch.library.custom_op("schemabank::masked_down_weights", mutates_args=())
def _weight_gradients(inputs: Tensor, mask: Tensor, scale: Tensor, upstream: Tensor) -> Tensor:
    slots, rows, width = mask.shape
    adapters, rank = upstream.shape[0], upstream.shape[-1]
    result = upstream.new_empty(adapters, slots, width, rank)
    blocks = _kernel_constants("weights", upstream, rank, slots * rows)
    _weight_kernel[triton.cdiv(width, blocks["BF"]), slots](
        inputs.contiguous(), mask, scale, upstream, result,
        rows, width, rank, slots, **blocks,
    )  # fmt: skip
    return result


@_weight_gradients.register_fake
def _(inputs, mask, scale, upstream):
    return upstream.new_empty(upstream.shape[0], mask.shape[0], mask.shape[2], upstream.shape[-1])


def _three_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return three weights, because a kernel has a fixed number of arguments.

    The last weight is repeated if there are fewer; the kernel does not read the repetitions.
    """
    return [weights[min(i, len(weights) - 1)] for i in range(MAX_ADAPTERS)]


def _kernel_constants(kernel: str, adapters: Sized, rank: int, rows: int) -> dict[str, int]:
    """Return a kernel's constants for a number of rows in all slots."""
    block_rows, features, warps = BLOCKS[kernel][rows > SMALL_ROWS]
    return {
        "NUM": len(adapters),
        "BM": block_rows,
        "BF": features,
        "BR": _block_rank(rank),
        "num_warps": warps,
    }


def _block_rank(rank: int) -> int:
    padded: int = triton.next_power_of_2(rank)
    return max(16, padded)  # the smallest size that `tl.dot` takes


@triton.jit
def _mix(value):
    """The hash of :func:`schemabank.engine.dropout.hashed`, bit for bit; int32 overflow wraps."""
    value = value * _MIX_IN
    return (value ^ (value >> 15)) * _MIX_OUT


@triton.jit
def _masked_product(total, x, row, column, least, weight, offsets, inside):
    """Add ``(mask ∘ x) weight`` to ``total``; also return the mask."""
    keep = _mix(row[:, None] ^ column[None, :]) >= least
    w = tl.load(weight + offsets, mask=inside, other=0.0)
    # Exact products in float32; without "ieee" Triton would take TF32.
    return tl.dot(tl.where(keep, x, 0.0), w, total, input_precision="ieee"), keep


@triton.jit
def _down_kernel(
    x_ptr, a0_ptr, a1_ptr, a2_ptr, keys, layers, least_ptr, scale_ptr, low_ptr, mask_ptr,
    rows, tokens, width, rank, stride, slots,
    NUM: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(1).to(tl.int64)  # offsets in all slots' inputs may exceed 32 bits
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    r = tl.arange(0, BR)
    # The same hashes in the same order as in `SlotDropout`, so that masks do not depend on where a
    # step runs. The part that depends on the row alone stays out of the loop over features.
    key, least, scale = tl.load(keys + slot), tl.load(least_ptr + slot), tl.load(scale_ptr + slot)
    place = (m // tokens) * _BATCH_STRIDE + m % tokens
    row0 = _mix(_mix(key + tl.load(layers)) ^ place)
    row1, row2 = row0, row0
    if NUM > 1:
        row1 = _mix(_mix(key + tl.load(layers + 1)) ^ place)
    if NUM > 2:
        row2 = _mix(_mix(key + tl.load(layers + 2)) ^ place)
    low0 = tl.zeros((BM, BR), dtype=tl.float32)
    low1, low2 = low0, low0
    for start in range(0, width, BF):
        f = start + tl.arange(0, BF)
        inside = (m < rows)[:, None] & (f < width)[None, :]
        at = (slot * rows + m)[:, None] * width + f[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        offsets = slot * stride + f[:, None] * rank + r[None, :]
        fits = (f < width)[:, None] & (r < rank)[None, :]
        column = _mix(f)
        low0, keep = _masked_product(low0, x, row0, column, least, a0_ptr, offsets, fits)
        bits = keep.to(tl.uint8)
        if NUM > 1:
            low1, keep = _masked_product(low1, x, row1, column, least, a1_ptr, offsets, fits)
            bits |= keep.to(tl.uint8) << 1
        if NUM > 2:
            low2, keep = _masked_product(low2, x, row2, column, least, a2_ptr, offsets, fits)
            bits |= keep.to(tl.uint8) << 2
        tl.store(mask_ptr + at, bits, mask=inside)
    fits = (m < rows)[:, None] & (r < rank)[None, :]
    at = low_ptr + (slot * rows + m)[:, None] * rank + r[None, :]
    # Dropout's factor is in the scale. It acts here, in float32, and not on the rounded input.
    tl.store(at, low0 * scale, mask=fits)
    if NUM > 1:
        tl.store(at + slots * rows * rank, low1 * scale, mask=fits)
    if NUM > 2:
        tl.store(at + 2 * slots * rows * rank, low2 * scale, mask=fits)


@triton.jit
def _add_input_gradient(total, bits, bit: tl.constexpr, up, weight, offsets, inside):
    """Add ``mask ∘ (up weightᵀ)`` to ``total``, the mask being a bit of ``bits``."""
    w = tl.load(weight + offsets, mask=inside, other=0.0)
    product = tl.dot(up, tl.trans(w), input_precision="ieee")
    return total + tl.where(((bits >> bit) & 1) != 0, product, 0.0)


@triton.jit
def _input_kernel(
    up_ptr, a0_ptr, a1_ptr, a2_ptr, scale_ptr, mask_ptr, result_ptr,
    rows, width, rank, stride, slots,
    NUM: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    r = tl.arange(0, BR)
    inside = (m < rows)[:, None] & (f < width)[None, :]
    at = (slot * rows + m)[:, None] * width + f[None, :]
    bits = tl.load(mask_ptr + at, mask=inside, other=0)
    known = (m < rows)[:, None] & (r < rank)[None, :]
    up_at = up_ptr + (slot * rows + m)[:, None] * rank + r[None, :]
    offsets = slot * stride + f[:, None] * rank + r[None, :]
    fits = (f < width)[:, None] & (r < rank)[None, :]
    up = tl.load(up_at, mask=known, other=0.0)
    total = tl.zeros((BM, BF), dtype=tl.float32)
    total = _add_input_gradient(total, bits, 0, up, a0_ptr, offsets, fits)
    if NUM > 1:
        up = tl.load(up_at + slots * rows * rank, mask=known, other=0.0)
        total = _add_input_gradient(total, bits, 1, up, a1_ptr, offsets, fits)
    if NUM > 2:
        up = tl.load(up_at + 2 * slots * rows * rank, mask=known, other=0.0)
        total = _add_input_gradient(total, bits, 2, up, a2_ptr, offsets, fits)
    tl.store(result_ptr + at, total * tl.load(scale_ptr + slot), mask=inside)


@triton.jit
def _add_weight_gradient(total, x, bits, bit: tl.constexpr, up_at, known):
    """Add ``(mask ∘ x)ᵀ up`` to ``total``, the mask being a bit of ``bits``."""
    kept = tl.where(((bits >> bit) & 1) != 0, x, 0.0)
    up = tl.load(up_at, mask=known, other=0.0)
    return tl.dot(tl.trans(kept), up, total, input_precision="ieee")


@triton.jit
def _weight_kernel(
    x_ptr, mask_ptr, scale_ptr, up_ptr, result_ptr,
    rows, width, rank, slots,
    NUM: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(1).to(tl.int64)
    f = tl.program_id(0) * BF + tl.arange(0, BF)
    r = tl.arange(0, BR)
    grad0 = tl.zeros((BF, BR), dtype=tl.float32)
    grad1, grad2 = grad0, grad0
    # One program sums over all rows of a slot: no atomics, so the order of the sum is fixed.
    for start in range(0, rows, BM):
        m = start + tl.arange(0, BM)
        inside = (m < rows)[:, None] & (f < width)[None, :]
        at = (slot * rows + m)[:, None] * width + f[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        bits = tl.load(mask_ptr + at, mask=inside, other=0)
        known = (m < rows)[:, None] & (r < rank)[None, :]
        up_at = up_ptr + (slot * rows + m)[:, None] * rank + r[None, :]
        grad0 = _add_weight_gradient(grad0, x, bits, 0, up_at, known)
        if NUM > 1:
            grad1 = _add_weight_gradient(grad1, x, bits, 1, up_at + slots * rows * rank, known)
        if NUM > 2:
            grad2 = _add_weight_gradient(grad2, x, bits, 2, up_at + 2 * slots * rows * rank, known)
    scale = tl.load(scale_ptr + slot)
    fits = (f < width)[:, None] & (r < rank)[None, :]
    at = result_ptr + (slot * width + f)[:, None] * rank + r[None, :]
    tl.store(at, grad0 * scale, mask=fits)
    if NUM > 1:
        tl.store(at + slots * width * rank, grad1 * scale, mask=fits)
    if NUM > 2:
        tl.store(at + 2 * slots * width * rank, grad2 * scale, mask=fits)
