"""The schema bank: routed low-rank transforms on a decoder block's output.

A router picks ``top_k`` of ``S`` maps of rank ``r`` for every token and adds their gated mixture to
the hidden state. All maps are applied as two matrix products with the gates in between, so no
tensor of shape ``(batch, token, schema, hidden)`` ever exists. Weights have a leading slot
dimension: slot ``n`` is one training run's bank, and never meets another slot's.

Source: equations 5 and 6 of the SchemaBank paper, with the settings of the results document.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from schemabank.engine.execute import one_thread

Routing = Literal["off", "on", "dense"]

# The attribute gate of a schema is 0.9 + 0.2 sigmoid(...), so it lies between 0.9 and 1.1.
GATE_BASE = 0.9
GATE_SPAN = 0.2


@dataclass(frozen=True)
class Routed:
    """What the router did in one forward pass.

    Attributes:
        log_probs: ``(slot, batch, token, schema)``, logarithm of the router's softmax, in float32,
            or in float64 for states of that type.
        gates: ``(slot, batch, token, schema)``, of the same type, zero outside the top k.
    """

    log_probs: Tensor
    gates: Tensor


class SchemaBank(nn.Module):
    """One bank for each of ``num_slots`` runs.

    Args:
        num_slots: leading dimension of every weight.
        hidden_size: width of the hidden states.
        num_schemas: ``S``, how many low-rank maps the router chooses from.
        rank: ``r``, the rank of each map, in the slot with the largest.
        top_k: how many maps a token uses, in the slot with the most.
        attribute_dim: ``a``, width of the schemas' attribute vectors.
        residual: whether to add the mixture to the input (paper eq. 5); otherwise the output is the
            mixture alone, as in the public code.

    Attributes:
        ranks: the rank of each slot's maps. Padding up to ``rank`` is zero and stays zero: U and V
            get their gradients through each other.
        top_ks: ``(slot,)``, how many maps a token of each slot uses.
        in_rank: ``(slot, rank)``, 1 for what is not padding.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        hidden_size: int,
        num_schemas: int,
        rank: int,
        top_k: int,
        attribute_dim: int,
        residual: bool,
    ) -> None:
        super().__init__()
        assert 1 <= top_k <= num_schemas
        self.num_slots, self.num_schemas, self.rank = num_slots, num_schemas, rank
        self.top_k, self.residual = top_k, residual
        self.ranks = [rank] * num_slots
        self.top_ks: Tensor
        self.register_buffer("top_ks", torch.full((num_slots,), top_k), persistent=False)
        self.in_rank: Tensor
        self.register_buffer("in_rank", torch.ones(num_slots, rank), persistent=False)
        width = num_schemas * rank
        self.router = nn.Parameter(torch.zeros(num_slots, num_schemas, hidden_size))
        self.U = nn.Parameter(torch.zeros(num_slots, hidden_size, width))
        self.V = nn.Parameter(torch.zeros(num_slots, width, hidden_size))
        self.attributes = nn.Parameter(torch.zeros(num_slots, num_schemas, attribute_dim))
        self.query = nn.Parameter(torch.zeros(num_slots, attribute_dim))

    def configure(self, slot: int, *, rank: int, top_k: int) -> None:
        """Give a slot another rank and top k, at most the bank's own."""
        assert rank <= self.rank
        assert top_k <= self.top_k
        self.ranks[slot] = rank
        self.top_ks[slot] = top_k
        self.in_rank[slot] = (torch.arange(self.rank) < rank).float()

    @torch.no_grad()
    def initialise(self, slot: int, generator: torch.Generator, *, init_std: float) -> None:
        """Draw one slot's weights from a CPU generator.

        The rows of every ``V_s`` start orthonormal, as the regulariser wants them. If ``V`` were
        zero, as LoRA's B is, a frozen bank would pass no gradient to its router.
        """

        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * std

        _, num_schemas, hidden = self.router.shape
        rank = self.ranks[slot]
        self.router[slot].copy_(normal(num_schemas, hidden, std=init_std))
        down = normal(hidden, num_schemas * rank, std=init_std)
        with one_thread():
            up = torch.linalg.qr(normal(num_schemas, hidden, rank, std=1.0)).Q
        self._set_maps(slot, down, up.transpose(1, 2))
        self.attributes[slot].copy_(normal(*self.attributes.shape[1:], std=1.0))
        self.query[slot].copy_(normal(*self.query.shape[1:], std=init_std))

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """Return a slot's weights by name, without the padding of its rank."""
        found = {name: weight.detach()[slot] for name, weight in self.named_parameters()}
        down, up = self._maps(slot)
        found |= {"U": down.flatten(1), "V": up.flatten(0, 1)}
        return {name: weight.clone().contiguous() for name, weight in found.items()}

    @torch.no_grad()
    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Set a slot's weights from :meth:`tensors` of a bank with the slot's settings."""
        for name, weight in self.named_parameters():
            if name not in {"U", "V"}:
                weight[slot].copy_(tensors[name])
        self._set_maps(slot, tensors["U"], tensors["V"].unflatten(0, (self.num_schemas, -1)))

    def _set_maps(self, slot: int, down: Tensor, up: Tensor) -> None:
        """Set ``U`` from ``(hidden, schema * rank)`` and ``V`` from ``(schema, rank, hidden)``."""
        for weight in (self.U, self.V):
            weight[slot].zero_()
        own_down, own_up = self._maps(slot)
        own_down.copy_(down.unflatten(1, (self.num_schemas, -1)))
        own_up.copy_(up)

    def _maps(self, slot: int) -> tuple[Tensor, Tensor]:
        """View a slot's U as ``(hidden, schema, rank)`` and V as ``(schema, rank, hidden)``."""
        rank, shape = self.ranks[slot], (self.num_schemas, self.rank)
        down, up = (weight.detach()[slot] for weight in (self.U, self.V))
        return down.unflatten(1, shape)[..., :rank], up.unflatten(0, shape)[:, :rank]

    def forward(
        self, hidden: Tensor, *, scale: Tensor, dense: bool = False
    ) -> tuple[Tensor, Routed]:
        """Route every token and move it by the mixture of its schemas.

        Args:
            hidden: ``(slot * batch, token, hidden)``, slots outermost.
            scale: ``(slot,)``, the bank scale ``β``: 0 leaves ``hidden`` as it is, 1 is the bank.
            dense: use the mean of all schemas and no router (paper eq. 6).

        Returns:
            The new hidden state, shaped like ``hidden``, and what the router did.
        """
        states = hidden.unflatten(0, (self.num_slots, -1))
        routed = self.route(states)
        if dense:
            gates = torch.full_like(routed.gates, 1 / self.num_schemas)
            routed = Routed(log_probs=routed.log_probs, gates=gates)
        mixture = self._mixture(states, routed.gates)
        # At a scale of 0 this is `hidden`, so a bare step needs no program of its own.
        beta = scale.to(hidden.dtype)[:, None, None, None]
        kept = states if self.residual else (1 - beta) * states
        return (kept + beta * mixture).flatten(0, 1), routed

    def route(self, states: Tensor) -> Routed:
        """Return log-probabilities and gates for ``states``: ``(slot, batch, token, hidden)``.

        The top k probabilities are renormalised to sum to 1. With a top k of 1 that would make
        every gate 1 and leave the router without a gradient, so the gate is the probability itself.
        """
        # In bfloat16, rounding would decide which of two close schemas is chosen.
        wide = torch.promote_types(states.dtype, torch.float32)
        logits = torch.einsum("nbth,nsh->nbts", states.to(wide), self.router.to(wide))
        log_probs = logits.log_softmax(-1)
        top = log_probs.topk(self.top_k, dim=-1)
        top_ks = self.top_ks[:, None, None, None]
        # All slots take the largest top k, and slots of a smaller one mask the rest. A slot's own
        # value is data on the device, so one captured program serves all values.
        inside = torch.arange(self.top_k, device=top_ks.device) < top_ks
        shares = top.values.masked_fill(~inside, -torch.inf).softmax(-1)
        kept = torch.where(top_ks == 1, top.values.exp() * inside, shares)
        gates = torch.zeros_like(log_probs).scatter(-1, top.indices, kept)
        return Routed(log_probs=log_probs, gates=gates)

    def _mixture(self, states: Tensor, gates: Tensor) -> Tensor:
        """Return the gated sum of all schemas' outputs, scaled by the attribute gate."""
        affinity = sigmoid(torch.einsum("nsa,na->ns", self.attributes, self.query))
        scale = GATE_BASE + GATE_SPAN * torch.einsum("nbts,ns->nbt", gates, affinity)
        weights = (gates * scale[..., None]).to(states.dtype)
        low = torch.einsum("nbth,nhw->nbtw", states, self.U.to(states.dtype))
        low = (low.unflatten(-1, (self.num_schemas, self.rank)) * weights[..., None]).flatten(-2)
        return torch.einsum("nbtw,nwh->nbth", low, self.V.to(states.dtype))


def sigmoid(values: Tensor) -> Tensor:
    """The logistic function, with the same bits wherever a value stands in its tensor.

    On a CPU, PyTorch's own computes the last few numbers of a tensor by other instructions, so a
    run's gate would depend on its slot.
    """
    return 0.5 + 0.5 * (0.5 * values).tanh()
