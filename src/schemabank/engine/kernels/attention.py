"""Causal attention for training on right-padded rows, in place of a library's.

Libraries tune attention for thousands of tokens. Rows of a hundred have kernels of their own on a
GPU. In bfloat16 on a CPU, a few plain matrix products over all scores of a row take less time than
a library's tiles.

On a GPU a library sums the gradient of a long row's queries by atomics, whose order depends on
timing: two runs of the same seed would part after some hundred steps. So no model whose attention
is replaced is trained with it there. Rows of any length have the kernels. What these cannot do,
such as a window, is plain products, which keep all scores in memory, in the states' type.

No mask is needed for padding, which stands to the right: under causal attention no real token looks
there, and nobody reads what comes out for a padded one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from schemabank.common.errors import InputError
from schemabank.engine.execute import can_compile

NAME, LIBRARY_NAME = "schemabank_causal", "schemabank_library"
# Settings of a model's attention that the functions here do not implement.
MORE = ("attn_logit_softcapping", "attention_chunk_size", "use_bidirectional_attention")
# Arguments that models pass to an attention function and that change nothing here.
IGNORED = {"dropout", "is_causal", "output_router_logits", "position_ids", "use_cache"}
LONGEST = 256  # tokens; for longer rows on a CPU the library is as fast and keeps no scores


@contextmanager
def short_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model use the attention for short rows within this context.

    A model keeps its own attention if it does not choose it through transformers' interface, or if
    its attention has more than a window: a soft cap on the scores, chunks, or both directions.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    more = any(getattr(config, name, None) for name in MORE)
    if before == "sdpa" and model._supports_attention_backend and not more:
        config._attn_implementation = attention_name(model.device)
    try:
        yield
    finally:
        config._attn_implementation = before


def attention_name(device: torch.device) -> str:
    """Return the name of the attention for short rows; on a GPU it needs Triton's kernels."""
    return NAME if device.type != "cuda" or can_compile(device) else LIBRARY_NAME


def causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attend causally, as one of transformers' attention functions.

    Args:
        module: the attention layer.
        query: ``(row, head, token, dim)``.
        key: ``(row, kv head, token, dim)``.
        value: ``(row, kv head, token, dim)``.
        attention_mask: must be ``None``.
        scaling: factor of the scores.
        sliding_window: how many of the last tokens a token sees.
        **others: what causal attention has no use for, such as ``position_ids``.

    Returns:
        ``(row, token, head, dim)``.

    Raises:
        InputError: the model needs more than this.
    """
    assert attention_mask is None
    check_known(module, others)
    tokens, dim = query.shape[2:]
    wide = sliding_window is None or sliding_window >= tokens  # the window cuts nothing off
    too_long = tokens > LONGEST and not query.is_cuda
    if too_long or not wide or value.shape[-1] != dim:
        return library_attention(
            module, query, key, value, None, scaling=scaling, sliding_window=sliding_window
        )
    scale = dim**-0.5 if scaling is None else scaling
    if not query.is_cuda:
        return _products(query, key, value, scale), None
    from schemabank.engine.kernels.flash import HEAD_DIMS, flash_attention  # noqa: PLC0415 -- needs Triton

    if dim not in HEAD_DIMS or query.dtype == torch.float64:
        return library_attention(module, query, key, value, None, scaling=scaling)
    return flash_attention(query, key, value, scale), None


def library_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Compute :func:`causal_attention` by the library.

    It has a name of its own, because a model makes a mask for the attention called ``sdpa``. Where
    it trains on a GPU, it is made of plain products instead.
    """
    assert attention_mask is None
    check_known(module, others)
    tokens, dim = query.shape[2:]
    window = sliding_window if sliding_window is not None and sliding_window < tokens else None
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if query.is_cuda and trains:
        scale = dim**-0.5 if scaling is None else scaling
        return _products(query, key, value, scale, window), None
    mask = None
    if window is not None:
        place = torch.arange(tokens, device=query.device)
        distance = place[:, None] - place[None, :]
        mask = ((distance >= 0) & (distance < window))[None, None]
    result: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)[0]
    return result, None


def check_known(module: nn.Module, others: Mapping[str, object]) -> None:
    """Refuse arguments of a model's attention that the functions here would ignore.

    Raises:
        InputError: naming it.
    """
    unknown = [name for name, value in others.items() if value is not None and name not in IGNORED]
    if unknown:
        raise InputError(
            f"{type(module).__name__} has attention with {', '.join(unknown)}: allowed is causal "
            "attention with an optional window, use such a model"
        )


AttentionInterface.register(NAME, causal_attention)
AttentionInterface.register(LIBRARY_NAME, library_attention)


def _products(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
) -> Tensor:
    result: Tensor = _Products.apply(query, key, value, scale, window)  # type: ignore[no-untyped-call]
    return result


class _Products(torch.autograd.Function):
    """Softmax attention as batched matrix products; heads that share keys are one batch."""

    @staticmethod
    def forward(  # noqa: PLR0917 -- autograd passes no names
        ctx: FunctionCtx,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        rows, heads, tokens, dim = query.shape
        batches, group = rows * key.shape[1], heads // key.shape[1]
        q = query.reshape(batches, group * tokens, dim)
        k, v = (t.reshape(batches, tokens, t.shape[-1]) for t in (key, value))
        # The scores, their scale and the mask in one operation: mask + scale * q kᵀ.
        mask = _mask(tokens, group, query, window).expand(batches, -1, -1)
        shares = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
        ctx.save_for_backward(q, k, v, shares)
        shapes = (query.shape, key.shape, value.shape)
        ctx.scale, ctx.shapes = scale, shapes  # type: ignore[attr-defined]
        return torch.bmm(shares, v).view(rows, heads, tokens, v.shape[-1]).transpose(1, 2)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, shares = ctx.saved_tensors  # type: ignore[attr-defined]
        of_query, of_key, of_value = ctx.shapes  # type: ignore[attr-defined]
        up = upstream.transpose(1, 2).reshape(*q.shape[:2], v.shape[-1])
        to_value = torch.bmm(shares.transpose(1, 2), up)
        to_shares = torch.bmm(up, v.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_shares, shares, -1, shares.dtype)
        # With a beta of 0 the first argument of `baddbmm` counts for its shape alone.
        scaled = {"beta": 0, "alpha": ctx.scale}  # type: ignore[attr-defined]
        to_query = torch.baddbmm(q, to_scores, k, **scaled)
        to_key = torch.baddbmm(k, to_scores.transpose(1, 2), q, **scaled)
        return to_query.view(of_query), to_key.view(of_key), to_value.view(of_value), None, None


def _mask(tokens: int, group: int, like: Tensor, window: int | None) -> Tensor:
    """Return what is added to the scores of a group of heads: ``(group * token, token)``."""
    if like.is_cuda:  # a tensor that a captured step made must not outlive it
        return _made_mask(tokens, group, like.dtype, like.device, window)
    return _cached_mask(tokens, group, like.dtype, window)


@lru_cache(maxsize=64)
def _cached_mask(tokens: int, group: int, dtype: torch.dtype, window: int | None) -> Tensor:
    return _made_mask(tokens, group, dtype, torch.device("cpu"), window)


def _made_mask(
    tokens: int, group: int, dtype: torch.dtype, device: torch.device, window: int | None
) -> Tensor:
    hidden = torch.full((tokens, tokens), -torch.inf, dtype=dtype, device=device)
    mask = hidden.triu(1)
    if window is not None:
        mask = mask + hidden.tril(-window)
    return mask.repeat(group, 1)
