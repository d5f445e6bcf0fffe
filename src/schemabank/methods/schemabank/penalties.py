"""The terms that a run with a schema bank adds to its loss, and where their weights come from.

To add one, write its function and put it in ``PENALTIES`` under the name of its weight, a setting
of ``BankSettings`` that ends in ``_weight``. A function sees :class:`Seen` and the step's input. If
it needs more, make that a field of ``Routed``, which takes memory in every step. Only the weight of
the tag loss is in another section, ``tags.loss_weight``; ``course.py`` adds it.
Source: equation 8 of the SchemaBank paper; equation 4 of Switch Transformers (arXiv 2101.03961).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank.engine.part import Penalty, StepInput
from schemabank.methods.schemabank.bank import Routed, SchemaBank

ORTHONORMAL_WITHIN = 1e-5  # the error of a float32 product of a thousand terms is about 1e-6


@dataclass(frozen=True)
class Seen:
    """Banks, and what their routers did in the last forward pass, in block order."""

    banks: Sequence[SchemaBank]
    routed: Sequence[Routed]


def orthonormality(bank: SchemaBank) -> Tensor:
    """Return the mean over schemas of ``‖V_s V_sᵀ − I_r‖²``, one value a slot, ``(slot,)``.

    Entries that rounding alone explains count as zero. Adam divides a gradient by its own size, so
    it would turn this tiny noise into full steps of random sign for schemas that no token uses.
    """
    rows = bank.V.unflatten(1, (bank.num_schemas, bank.rank))
    gram = torch.einsum("nsrh,nsqh->nsrq", rows, rows)
    # A slot of a smaller rank wants 1 on the diagonal for its own rank only; its padding is zero.
    deviation = gram - torch.diag_embed(bank.in_rank)[:, None]
    deviation = torch.where(deviation.abs() < ORTHONORMAL_WITHIN, 0.0, deviation)
    return deviation.square().sum((-1, -2)).mean(-1)


def router_entropy(routed: Routed, mask: Tensor) -> Tensor:
    """Return the mean entropy of the router's softmax in nats, ``(slot,)``.

    Args:
        routed: what the router did.
        mask: ``(slot, batch, token)``, 1 for real tokens, 0 for padding.
    """
    entropy = -(routed.log_probs.exp() * routed.log_probs).sum(-1)
    return _masked_mean(entropy, mask)


def load_balance(routed: Routed, mask: Tensor) -> Tensor:
    """Return ``S Σ_s f_s P_s``, ``(slot,)``; 1 is balanced.

    This is equation 4 of Switch Transformers (arXiv 2101.03961). ``f_s`` is the share of routing
    choices that fall on schema ``s``, and ``P_s`` its mean probability. If ``top_k > 1``, each
    choice of a token counts ``1 / top_k``.
    """
    chosen = (routed.gates > 0).to(mask.dtype)
    chosen = chosen / chosen.sum(-1, keepdim=True)
    share = _masked_mean(chosen, mask)  # counts choices, so it has no gradient
    prob = _masked_mean(routed.log_probs.exp(), mask)
    return share.shape[-1] * (share.detach() * prob).sum(-1)


def tag_loss(routed: Routed, tags: Tensor, mask: Tensor, shown: Tensor) -> Tensor:
    """Return the router's loss on tagged schemas, ``−log p_t`` (paper eq. 8), in nats, ``(slot,)``.

    The loss is summed over the tokens of examples whose tags are shown, and divided by the number
    of all real tokens. So an example whose tags are shown with probability ``p`` has ``p`` times
    the full effect on average, and the loss fades as the schedule shows fewer tags. A mean over
    these tokens alone would keep its full effect as long as any example of the batch is tagged.

    Args:
        routed: what the router did.
        tags: ``(slot, batch, tag)``, schema ids.
        mask: ``(slot, batch, token)``, 1 for real tokens, 0 for padding.
        shown: ``(slot, batch)``, 1 for examples whose tags are shown.
    """
    picked = tags[:, :, None, :].expand(-1, -1, routed.log_probs.shape[2], -1)
    surprise = -routed.log_probs.gather(-1, picked).mean(-1)
    return _masked_mean(torch.where(shown[..., None] > 0, surprise, 0.0), mask)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``(slot, batch, token, ...)`` over batch and token; 0 if none is real."""
    weights = mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim()))
    total = torch.where(weights > 0, values, 0).mul(weights).sum((1, 2))
    return total / weights.sum((1, 2)).clamp(min=1)


def _of_routers(
    value: Callable[[Routed, StepInput], Tensor],
) -> Callable[[Seen, StepInput], Tensor]:
    """Turn a term of one router into its mean over all routers."""

    def mean(seen: Seen, given: StepInput) -> Tensor:
        return torch.stack([value(routed, given) for routed in seen.routed]).mean(0)

    return mean


def _of_schemas(value: Callable[[SchemaBank], Tensor]) -> Callable[[Seen, StepInput], Tensor]:
    """Turn a term of one bank into its mean over all banks."""

    def mean(seen: Seen, _given: StepInput) -> Tensor:
        return torch.stack([value(bank) for bank in seen.banks]).mean(0)

    return mean


PENALTIES = (
    Penalty("entropy_weight", _of_routers(lambda r, given: router_entropy(r, given.batch.real))),
    Penalty("load_balance_weight", _of_routers(lambda r, given: load_balance(r, given.batch.real))),
    Penalty("orthonormality_weight", _of_schemas(orthonormality), group="schemas"),
    Penalty(
        "tag_loss_weight",
        _of_routers(lambda r, given: tag_loss(r, given["tags"], given.batch.real, given["tagged"])),
    ),
)
