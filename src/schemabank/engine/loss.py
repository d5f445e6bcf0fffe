"""Cross-entropy at labelled positions only, without keeping a logits tensor.

The output layer is frozen, so its only gradient goes to the hidden states. The forward pass
computes that gradient chunk by chunk. So the memory is that of one chunk's logits, however many
slots there are.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.engine.batches import Batch
from schemabank.engine.execute import can_compile

CHUNK_ROWS = 1024  # labels whose logits are in memory at once
PAIRED_ROWS = 256  # the same for two passes; autograd keeps some ten times their logits, in float32

HEAD_TOLERANCE = 1e-3  # in logits; a forgotten factor or cap changes them by far more
# Names in configurations of a number that logits are multiplied by, divided by or capped at.
FACTORS, DIVISORS = ("logit_scale",), ("logits_scaling",)  # Cohere; Granite
CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma; RecurrentGemma

Head = Callable[[Tensor], Tensor]


def output_head(model: PreTrainedModel) -> Head:
    """Return the map from final hidden states to logits.

    Raises:
        InputError: no known form of the map reproduces the model's own logits.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise InputError(
            f"the model {type(model).__name__} has no output layer: allowed are causal language "
            "models, use one"
        )
    factor, divisor, cap = (_configured(model, names) for names in (FACTORS, DIVISORS, CAPS))

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = layer(hidden)
        if factor is not None:
            logits = logits * factor
        if divisor is not None:
            logits = logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # A configuration's name alone proves nothing, so both ways of computing logits are compared.
    tokens = torch.arange(1, 5, device=model.device)[None]
    with torch.no_grad():
        ours = head(model.base_model(input_ids=tokens, use_cache=False).last_hidden_state).float()
        theirs = model(input_ids=tokens, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, rtol=HEAD_TOLERANCE, atol=HEAD_TOLERANCE):
        raise InputError(
            f"the model {type(model).__name__} changes its logits after the output layer: allowed "
            f"are a linear output layer, {', '.join((*FACTORS, *DIVISORS, *CAPS))}, use a model of "
            "that kind"
        )
    return head


def _configured(model: PreTrainedModel, names: Sequence[str]) -> float | None:
    """Return the first of these numbers that a model's configuration has, unless it is 1."""
    config = model.config.get_text_config(decoder=True)
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if value not in {None, 1}), None)


def gather_labelled(hidden: Tensor, positions: Tensor) -> Tensor:
    """Pick the hidden states that predict a label.

    Args:
        hidden: ``(slot * batch, token, hidden)``.
        positions: ``(slot, batch, label)``.

    Returns:
        ``(slot * batch * label, hidden)``.
    """
    index = positions.flatten(0, 1)[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, index).flatten(0, 1)


def labelled_losses(hidden: Tensor, batch: Batch, head: Head) -> Tensor:
    """Return the negative log-likelihood of every label in nats, ``(slot * batch * label,)``.

    On a GPU shapes are fixed, and the values of padded labels mean nothing. A CPU does not compute
    them. It takes slot by slot, so that the size of a slot's products, and with it their rounding,
    does not depend on another slot's labels.

    Args:
        hidden: ``(slot * batch, token, hidden)``, after the final norm.
        batch: the batch that was run.
        head: the frozen output layer.
    """
    picked = gather_labelled(hidden, batch.positions)
    return _at_labels(batch, partial(token_losses, head=head), picked, batch.labels.flatten())


def labelled_soft_losses(
    hidden: Tensor, batch: Batch, tokens: Tensor, shares: Tensor, head: Head
) -> tuple[Tensor, Tensor]:
    """Return every label's cross-entropy against soft targets, and its negative log-likelihood.

    Both are in nats, ``(slot * batch * label,)``; only the first has a gradient. For padding see
    :func:`labelled_losses`.

    Args:
        hidden: ``(slot * batch, token, hidden)``, after the final norm.
        batch: the batch that was run.
        tokens: ``(slot, batch, label, k)``, each label first.
        shares: ``(slot, batch, label, k)``, which sum to 1.
        head: the frozen output layer.
    """
    picked = gather_labelled(hidden, batch.positions)
    soft = [each.flatten(0, 2) for each in (tokens.long(), shares)]
    found = _at_labels(batch, partial(_soft_losses, head=head), picked, *soft)
    return found[:, 0], found[:, 1].detach()


def labelled_divergences(first: Tensor, second: Tensor, batch: Batch, head: Head) -> Tensor:
    """Return :func:`token_divergences` of every label, ``(slot * batch * label,)``.

    Args:
        first: ``(slot * batch, token, hidden)``, after the final norm.
        second: the same of another pass over the batch.
        batch: what was run.
        head: the frozen output layer.
    """
    picked = [gather_labelled(hidden, batch.positions) for hidden in (first, second)]
    return _at_labels(batch, partial(token_divergences, head=head), *picked)


def _at_labels(batch: Batch, values: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Compute a value for every label from its rows; see :func:`labelled_losses` for padding."""
    if rows[0].is_cuda:
        return values(*rows)
    parts, num_slots = [], len(batch.labels)
    slots = zip(*(each.unflatten(0, (num_slots, -1)) for each in rows), strict=True)
    for of_slot, weights in zip(slots, batch.weights.flatten(1), strict=True):
        (kept,) = weights.nonzero(as_tuple=True)
        found = values(*(each[kept] for each in of_slot))
        parts.append(found.new_zeros(len(weights), *found.shape[1:]).index_put((kept,), found))
    return torch.cat(parts)


def token_losses(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """Return the negative log-likelihood of every label in nats, ``(row,)``, at least float32.

    Args:
        hidden: ``(row, hidden)``, after the final norm.
        labels: ``(row,)``.
        head: the frozen output layer, ``(row, hidden) -> (row, vocabulary)``.
    """
    result: Tensor = _TokenLosses.apply(hidden, labels, head)  # type: ignore[no-untyped-call]
    return result


def _soft_losses(hidden: Tensor, tokens: Tensor, shares: Tensor, head: Head) -> Tensor:
    """Both of :func:`labelled_soft_losses`, ``(row, 2)``."""
    result: Tensor = _SoftLosses.apply(hidden, tokens, shares, head)  # type: ignore[no-untyped-call]
    return result


def token_divergences(first: Tensor, second: Tensor, head: Head) -> Tensor:
    """Return the symmetric divergence of two predictions of every label, in nats, ``(row,)``.

    ``½ KL(p ‖ q) + ½ KL(q ‖ p)``, as R-Drop (arXiv 2106.14448, eq. 2) and AdaMix (2205.12410,
    section 3.2) add it to the loss.

    Args:
        first: ``(row, hidden)``, after the final norm, from which ``p`` comes.
        second: the same for ``q``.
        head: the frozen output layer, ``(row, hidden) -> (row, vocabulary)``.
    """
    result: Tensor = _TokenDivergences.apply(first, second, head)  # type: ignore[no-untyped-call]
    return result


def _chunks(num_rows: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows of every chunk, and which of them are in no chunk before.

    All chunks of a call have one size, because a library may sum a product of another size in
    another order: a row's bits would depend on its chunk. So the last chunk repeats some rows.
    """
    num = max(1, -(-num_rows // most))
    size = -(-num_rows // num)
    for start in range(0, max(1, num * size), max(1, size)):
        first = min(start, num_rows - size)
        yield slice(first, first + size), slice(start - first, None)


class _TokenDivergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, first: Tensor, second: Tensor, head: Head) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
        values: list[Tensor] = []
        grads: list[tuple[Tensor, ...]] = []
        for rows, new in _chunks(len(first), PAIRED_ROWS):
            pair = [each[rows].detach().requires_grad_(wanted) for each in (first, second)]
            with torch.set_grad_enabled(wanted):
                value = _divergence(*(head(each) for each in pair))
            values.append(value.detach()[new])
            if wanted:
                found = torch.autograd.grad(value, pair, torch.ones_like(value))
                grads.append(tuple(grad[new] for grad in found))
        if wanted:
            ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*grads, strict=True)))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        first, second = (
            (grad * upstream[:, None]).to(grad.dtype)
            for grad in ctx.saved_tensors  # type: ignore[attr-defined]
        )
        return first, second, None


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """The symmetric divergence of rows of logits, ``(row,)``, in at least float32."""
    wide = torch.promote_types(p.dtype, torch.float32)
    log_p, log_q = (logits.log_softmax(-1, dtype=wide) for logits in (p, q))
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
        return _losses_by_chunk(
            ctx, hidden, head, lambda logits, rows: _loss_and_gradient(logits, labels[rows])
        )

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None]:
        # Each loss depends on its own row of hidden states alone: the chain rule is a factor a row.
        (grad,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (grad * upstream[:, None]).to(grad.dtype), None, None


class _SoftLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, tokens: Tensor, shares: Tensor, head: Head
    ) -> Tensor:
        def of_rows(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            return _soft_loss_and_gradient(logits, tokens[rows], shares[rows])

        return _losses_by_chunk(ctx, hidden, head, of_rows)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (grad * upstream[:, :1]).to(grad.dtype), None, None, None


def _losses_by_chunk(
    ctx: FunctionCtx,
    hidden: Tensor,
    head: Head,
    of_rows: Callable[[Tensor, slice], tuple[Tensor, Tensor]],
) -> Tensor:
    """Return the losses of all rows, and keep their gradient for the states in ``ctx``.

    Args:
        ctx: of a function whose first argument is ``hidden``.
        hidden: (row, hidden) final states.
        head: the map to logits.
        of_rows: from a chunk's logits and its rows to its losses and their gradient.
    """
    wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
    losses, grads = [], []
    for rows, new in _chunks(len(hidden), CHUNK_ROWS):
        # The chunk is a leaf of a graph of its own, which is gone with the next chunk.
        chunk = hidden[rows].detach().requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            logits = head(chunk)
        loss, grad = of_rows(logits.detach(), rows)
        losses.append(loss[new])
        if wanted:
            grads.append(torch.autograd.grad(logits, chunk, grad)[0][new])
    if wanted:
        ctx.save_for_backward(torch.cat(grads))
    return torch.cat(losses)


def _soft_loss_and_gradient(
    logits: Tensor, tokens: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each row's soft and hard loss, ``(row, 2)``, and the gradient of the soft one.

    That is the hard one's, but at the tokens that have a share: there it is computed anew, since
    the difference of two rounded gradients would have few digits.
    """
    hard, grad = _loss_and_gradient(logits, tokens[:, 0])
    scores = logits.gather(-1, tokens).to(hard.dtype)
    below = scores - scores[:, :1] - hard[:, None]  # log-probabilities
    # `where`: a logit of minus infinity, as of a row that only pads the head, has a share of 0.
    soft = -torch.where(shares > 0, shares * below, 0.0).sum(-1)
    grad.scatter_(-1, tokens, (below.exp() - shares).to(grad.dtype))
    return torch.stack([soft, hard], dim=-1), grad


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's cross-entropy in at least float32, and its gradient in the logits' type."""
    if can_compile(logits.device) and logits.itemsize <= torch.float32.itemsize:
        from schemabank.engine.kernels.cross_entropy import cross_entropy  # noqa: PLC0415 -- needs Triton

        return cross_entropy(logits, targets)
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.log_softmax(-1, dtype=wide)
    of_target = log_probs.gather(-1, targets[:, None])[:, 0]
    grad = log_probs.exp_().to(logits.dtype)
    rows = torch.arange(len(targets), device=targets.device)
    # Computed from the wide logarithm: in a narrow type, the difference of 1 and a rounded
    # probability near 1 would have few digits left.
    grad[rows, targets] = (of_target.exp() - 1).to(grad.dtype)
    return -of_target, grad


def mean_per_slot(losses: Tensor, weights: Tensor) -> Tensor:
    """Return every slot's mean loss over its labels, ``(slot,)``; 0 for a slot without labels.

    Args:
        losses: ``(slot * batch * label,)``.
        weights: ``(slot, batch, label)``, 1 for labels and 0 for padding.
    """
    flat = weights.flatten(1)
    # `where` and not a product: a padded label's loss means nothing and may be NaN.
    kept = torch.where(flat > 0, losses.view_as(flat), 0.0)
    return kept.sum(1) / flat.sum(1).clamp(min=1)
