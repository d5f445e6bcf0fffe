"""Causal attention on a GPU, forward and backward, for grouped query heads; best for short rows.

Libraries tune attention for thousands of tokens. Rows of a hundred leave their tiles mostly empty,
and the gradients of heads that share keys are computed one by one and summed afterwards. The
kernels here use small tiles, skip tiles that causality masks, and sum a group's gradients in
registers. The algorithm is FlashAttention-2 (arXiv 2307.08691). Nothing is summed by atomics, whose
order depends on timing, so the same input gives the same bits.

Letters in the kernels: ``m`` query tokens, ``n`` key tokens, ``d`` head dimension; ``qr``, ``qh``
and ``qt`` are the strides of the query's rows, heads and tokens, and so on for key and value.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (16, 32, 64, 128, 256)
LOG2_E = 1.4426950408889634


def flash_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend causally.

    Args:
        query: ``(row, head, token, dim)``, ``dim`` one of ``HEAD_DIMS``.
        key: ``(row, kv head, token, dim)``.
        value: ``(row, kv head, token, dim)``.
        scale: factor of the scores.

    Returns:
        ``(row, token, head, dim)``.
    """
    result: Tensor = _Attention.apply(query, key, value, scale)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, scale):
        output, log_sums = _forward(query, key, value, scale)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx, upstream):
        return *_backward(upstream.contiguous(), *ctx.saved_tensors, ctx.scale), None


@torch.library.custom_op("schemabank::causal_attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rows, heads, tokens, dim = query.shape
    output = query.new_empty(rows, tokens, heads, dim)
    # All that the backward pass needs to compute the shares of a query's keys again, in base 2.
    log_sums = query.new_empty(rows, heads, tokens, dtype=torch.float32)
    tiles = _tile_sizes(tokens, dim)
    _forward_kernel[rows * heads, triton.cdiv(tokens, tiles["BM"])](
        query, key, value, output, log_sums,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        tokens, heads, heads // key.shape[1], scale * LOG2_E, D=dim, **tiles,
    )  # fmt: skip
    return output, log_sums


@_forward.register_fake
def _(query, key, value, scale):
    rows, heads, tokens, dim = query.shape
    log_sums = query.new_empty(rows, heads, tokens, dtype=torch.float32)
    return query.new_empty(rows, tokens, heads, dim), log_sums


@torch.library.custom_op("schemabank::causal_attention_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, tokens, dim = query.shape
    kv_heads = key.shape[1]
    to_query, to_key, to_value = _empty_gradients(query, key)
    sums = torch.empty_like(log_sums)
    tiles = _tile_sizes(tokens, dim)
    num_tiles = triton.cdiv(tokens, tiles["BM"])
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    sizes = (tokens, heads, heads // kv_heads, scale * LOG2_E, scale)
    # The first kernel also fills `sums`, which the second reads: their order matters.
    _query_kernel[rows * heads, num_tiles](
        query, key, value, output, upstream, log_sums, sums, to_query,
        *strides, *sizes, D=dim, **tiles,
    )  # fmt: skip
    _key_value_kernel[rows * kv_heads, num_tiles](
        query, key, value, upstream, log_sums, sums, to_key, to_value,
        *strides, *sizes, D=dim, **tiles,
    )  # fmt: skip
    return to_query.transpose(1, 2), to_key.transpose(1, 2), to_value.transpose(1, 2)


@_backward.register_fake
def _(upstream, query, key, value, output, log_sums, scale):
    return tuple(g.transpose(1, 2) for g in _empty_gradients(query, key))


def _empty_gradients(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients, ``(row, token, head, dim)``, laid out as a projection's output."""
    rows, heads, tokens, dim = query.shape
    to_key, to_value = (query.new_empty(rows, tokens, key.shape[1], dim) for _ in range(2))
    return query.new_empty(rows, tokens, heads, dim), to_key, to_value


def _tile_sizes(tokens: int, dim: int) -> dict[str, int]:
    """Tokens of a tile, and warps. Short rows get small tiles, which they fill better.

    Queries and keys have tiles of one size, so that the tiles on the diagonal are square. Large
    heads leave room for small tiles only.
    """
    if dim > 128:
        return {"BM": 32, "num_warps": 8}
    return {"BM": 32, "num_warps": 2} if tokens <= 128 else {"BM": 64, "num_warps": 4}


@triton.jit
def _scores(q, k, m, n, scale, tokens):
    """Scores in base 2, minus infinity where masked; ``scale`` includes the change of base."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    return tl.where((m[:, None] >= n[None, :]) & (n < tokens)[None, :], s, -float("inf"))


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, sums_ptr,
    qr, qh, qt, kr, kh, kt, vr, vh, vt,
    tokens, heads, group, scale,
    D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    row = row.to(tl.int64)
    tile = tl.program_id(1)
    m, d = tile * BM + tl.arange(0, BM), tl.arange(0, D)
    real = (m < tokens)[:, None]
    q = tl.load(q_ptr + row * qr + head * qh + m[:, None] * qt + d, mask=real, other=0.0)
    k_ptr += row * kr + (head // group) * kh
    v_ptr += row * vr + (head // group) * vh
    top = tl.full((BM,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    out = tl.zeros((BM, D), dtype=tl.float32)
    # Tiles right of the diagonal are masked. In the first tile every query sees key 0, so `top` is
    # finite from there on and no difference of infinities can arise.
    for j in range(tile + 1):
        n = j * BM + tl.arange(0, BM)
        seen = (n < tokens)[:, None]
        k = tl.load(k_ptr + n[:, None] * kt + d, mask=seen, other=0.0)
        v = tl.load(v_ptr + n[:, None] * vt + d, mask=seen, other=0.0)
        s = _scores(q, k, m, n, scale, tokens)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
        top = higher
    at = (row * tokens + m[:, None]) * heads * D + head * D + d
    tl.store(o_ptr + at, out / total[:, None], mask=real)
    tl.store(sums_ptr + (row * heads + head) * tokens + m, top + tl.log2(total), mask=m < tokens)


@triton.jit
def _query_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, up_ptr, log_ptr, sums_ptr, result_ptr,
    qr, qh, qt, kr, kh, kt, vr, vh, vt,
    tokens, heads, group, scale, plain_scale,
    D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    row = row.to(tl.int64)
    tile = tl.program_id(1)
    m, d = tile * BM + tl.arange(0, BM), tl.arange(0, D)
    real = (m < tokens)[:, None]
    q = tl.load(q_ptr + row * qr + head * qh + m[:, None] * qt + d, mask=real, other=0.0)
    at = (row * tokens + m[:, None]) * heads * D + head * D + d
    up = tl.load(up_ptr + at, mask=real, other=0.0)
    o = tl.load(o_ptr + at, mask=real, other=0.0)
    # The softmax's backward pass needs the mean of `dp` over the keys, weighted by their shares.
    # That is the product of a query's output and its upstream gradient (D in algorithm 2).
    sums = tl.sum(up.to(tl.float32) * o.to(tl.float32), 1)
    place = (row * heads + head) * tokens + m
    tl.store(sums_ptr + place, sums, mask=m < tokens)
    log_sums = tl.load(log_ptr + place, mask=m < tokens, other=0.0)
    k_ptr += row * kr + (head // group) * kh
    v_ptr += row * vr + (head // group) * vh
    grad = tl.zeros((BM, D), dtype=tl.float32)
    for j in range(tile + 1):
        n = j * BM + tl.arange(0, BM)
        seen = (n < tokens)[:, None]
        k = tl.load(k_ptr + n[:, None] * kt + d, mask=seen, other=0.0)
        v = tl.load(v_ptr + n[:, None] * vt + d, mask=seen, other=0.0)
        p = tl.exp2(_scores(q, k, m, n, scale, tokens) - log_sums[:, None])
        dp = tl.dot(up, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - sums[:, None])).to(k.dtype)
        # Exact products in float32; without "ieee" Triton would take TF32.
        grad = tl.dot(ds, k, grad, input_precision="ieee")
    # `p` is the same in any base, so the chain rule takes the scale without the change of base.
    tl.store(result_ptr + at, grad * plain_scale, mask=real)


@triton.jit
def _key_value_kernel(
    q_ptr, k_ptr, v_ptr, up_ptr, log_ptr, sums_ptr, to_key_ptr, to_value_ptr,
    qr, qh, qt, kr, kh, kt, vr, vh, vt,
    tokens, heads, group, scale, plain_scale,
    D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group
    row, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    row = row.to(tl.int64)
    tile = tl.program_id(1)
    n, d = tile * BM + tl.arange(0, BM), tl.arange(0, D)
    seen = (n < tokens)[:, None]
    k = tl.load(k_ptr + row * kr + kv_head * kh + n[:, None] * kt + d, mask=seen, other=0.0)
    v = tl.load(v_ptr + row * vr + kv_head * vh + n[:, None] * vt + d, mask=seen, other=0.0)
    to_key = tl.zeros((BM, D), dtype=tl.float32)
    to_value = tl.zeros((BM, D), dtype=tl.float32)
    # One program takes all query heads that share this key head, and all their tiles from the
    # diagonal on: their gradients meet in registers, in a fixed order.
    for head in range(kv_head * group, kv_head * group + group):
        for i in range(tile, tl.cdiv(tokens, BM)):
            m = i * BM + tl.arange(0, BM)
            real = (m < tokens)[:, None]
            q = tl.load(q_ptr + row * qr + head * qh + m[:, None] * qt + d, mask=real, other=0.0)
            at = (row * tokens + m[:, None]) * heads * D + head * D + d
            up = tl.load(up_ptr + at, mask=real, other=0.0)
            place = (row * heads + head) * tokens + m
            log_sums = tl.load(log_ptr + place, mask=m < tokens, other=0.0)
            sums = tl.load(sums_ptr + place, mask=m < tokens, other=0.0)
            p = tl.exp2(_scores(q, k, m, n, scale, tokens) - log_sums[:, None])
            # A padded query is loaded as zeros, which would give it a share of 1 of every key.
            p = tl.where(real, p, 0.0)
            to_value = tl.dot(tl.trans(p.to(v.dtype)), up, to_value, input_precision="ieee")
            dp = tl.dot(up, tl.trans(v), input_precision="ieee")
            ds = (p * (dp - sums[:, None])).to(k.dtype)
            to_key = tl.dot(tl.trans(ds), q, to_key, input_precision="ieee")
    at = (row * tokens + n[:, None]) * kv_heads * D + kv_head * D + d
    tl.store(to_key_ptr + at, to_key * plain_scale, mask=seen)
    tl.store(to_value_ptr + at, to_value, mask=seen)
