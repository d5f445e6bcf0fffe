"""Cross-entropy at labelled positions only, without keeping a logits tensor.

The output layer is frozen, so the only gradient that leaves it goes to the hidden states. It is
computed chunk by chunk in the forward pass; memory is that of one chunk's logits, whatever the
number of slots.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.engine.batches import Batch
from schemabank.engine.execute import can_compile

CHUNK_ROWS = 1024
PAIRED_ROWS = 256  # of which autograd keeps some ten times the logits, in float32

HEAD_TOLERANCE = 1e-3
# What configurations call a number that the logits are multiplied with, divided by and capped at.
FACTORS, DIVISORS = ("logit_scale",), ("logits_scaling",)  # Cohere; Granite
CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma; RecurrentGemma

Head = Callable[[Tensor], Tensor]


def output_head(model: PreTrainedModel) -> Head:
    """Return the map from final hidden states to logits.

    Raises:
        InputError: the map reproduces the model's own logits in no known form.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise InputError(
            f"the model {type(model).__name__} has no output layer: allowed are causal language "
            "models, use one"
        )
    factor, divisor, cap = (_first_of(model, names) for names in (FACTORS, DIVISORS, CAPS))

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = layer(hidden)
        if factor is not None:
            logits = logits * factor
        if divisor is not None:
            logits = logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

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


def _first_of(model: PreTrainedModel, names: Sequence[str]) -> float | None:
    """The first of these numbers that a model's configuration has and that changes something."""
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

    Undefined for padded labels on a GPU, where shapes are fixed. A CPU leaves them out, slot by
    slot: so the size of no slot's products depends on another's labels.

    Args:
        hidden: ``(slot * batch, token, hidden)``, after the final norm.
        batch: what was run.
        head: the frozen output layer.
    """
    picked = gather_labelled(hidden, batch.positions)
    return _at_labels(batch, partial(token_losses, head=head), picked, batch.labels.flatten())


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
        parts.append(found.new_zeros(len(weights)).index_put((kept,), found))
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


class _TokenDivergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, first: Tensor, second: Tensor, head: Head) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
        values: list[Tensor] = []
        grads: list[tuple[Tensor, ...]] = []
        for rows in zip(first.split(PAIRED_ROWS), second.split(PAIRED_ROWS), strict=True):
            pair = [each.detach().requires_grad_(wanted) for each in rows]
            with torch.set_grad_enabled(wanted):
                value = _divergence(*(head(each) for each in pair))
            values.append(value.detach())
            if wanted:
                grads.append(torch.autograd.grad(value, pair, torch.ones_like(value)))
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
        wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        losses, grads = [], []
        for rows, targets in zip(hidden.split(CHUNK_ROWS), labels.split(CHUNK_ROWS), strict=True):
            chunk = rows.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = head(chunk)
            loss, grad = _loss_and_gradient(logits.detach(), targets)
            losses.append(loss)
            if wanted:
                grads += torch.autograd.grad(logits, chunk, grad)
        if wanted:
            ctx.save_for_backward(torch.cat(grads))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (grad * upstream[:, None]).to(grad.dtype), None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every row in at least float32, and its gradient in the logits' type."""
    if can_compile(logits.device) and logits.itemsize <= torch.float32.itemsize:
        from schemabank.engine.kernels.cross_entropy import cross_entropy  # noqa: PLC0415 -- needs Triton

        return cross_entropy(logits, targets)
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.log_softmax(-1, dtype=wide)
    of_target = log_probs.gather(-1, targets[:, None])[:, 0]
    grad = log_probs.exp_().to(logits.dtype)
    rows = torch.arange(len(targets), device=targets.device)
    grad[rows, targets] = (of_target.exp() - 1).to(grad.dtype)
    return -of_target, grad


def mean_per_slot(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean loss per label of every slot; 0 for a slot without labels.

    Args:
        losses: ``(slot * batch * label,)``.
        weights: ``(slot, batch, label)``, 1 for labels and 0 for padding.
    """
    flat = weights.flatten(1)
    kept = torch.where(flat > 0, losses.view_as(flat), 0.0)
    return kept.sum(1) / flat.sum(1).clamp(min=1)
