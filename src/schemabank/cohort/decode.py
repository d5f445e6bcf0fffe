"""Greedy decoding with all slots' adapters at once, unmerged.

Prompts stand right-aligned in ``(slot * batch, token)`` rows under an attention mask. Rows that
have ended leave the batch once enough of them have, the same number from every slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from schemabank.cohort.stack import AdapterStack

StopReason = Literal["end_token", "length"]
SHRINK_AT = 0.75


@dataclass
class Completion:
    """Generated tokens without the end token, and why they end."""

    tokens: list[int] = field(default_factory=list)
    stop_reason: StopReason = "length"

    @property
    def num_new_tokens(self) -> int:
        """Tokens generated, the end token included."""
        return len(self.tokens) + (self.stop_reason == "end_token")


@dataclass
class _Rows:
    """The rows still in the batch: ``(slot * row,)``, slots outermost."""

    next_tokens: Tensor
    mask: Tensor
    cache: DynamicCache
    completions: list[Completion]


def greedy(
    stack: AdapterStack,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_ids: Sequence[int],
) -> list[list[Completion]]:
    """Complete the same prompts with every slot's adapter.

    Call it inside ``stack.evaluating(...)``.

    Args:
        stack: the adapters, in evaluation mode.
        prompts: token ids of each prompt.
        max_new_tokens: limit of a completion.
        end_token_ids: tokens that end a completion.

    Returns:
        Completions as ``[slot][prompt]``.
    """
    completions = [[Completion() for _ in prompts] for _ in range(stack.num_slots)]
    rows = _prefill(stack, prompts, [c for slot in completions for c in slot])
    ends = set(end_token_ids)
    for remaining in reversed(range(max_new_tokens)):
        for completion, token in zip(rows.completions, rows.next_tokens.tolist(), strict=True):
            if completion.stop_reason == "end_token":
                continue
            if token in ends:
                completion.stop_reason = "end_token"
            else:
                completion.tokens.append(token)
        rows = _shrink(rows, stack.num_slots)
        if not rows.completions or remaining == 0:
            break
        _advance(stack, rows)
    return completions


def _prefill(
    stack: AdapterStack, prompts: Sequence[Sequence[int]], completions: list[Completion]
) -> _Rows:
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    tokens = tokens.repeat(stack.num_slots, 1).to(stack.model.device)
    mask = mask.repeat(stack.num_slots, 1).to(stack.model.device)
    rows = _Rows(tokens, mask, DynamicCache(config=stack.model.config), completions)
    _forward(stack, rows, tokens, (mask.cumsum(1) - 1).clamp(min=0))
    return rows


def _advance(stack: AdapterStack, rows: _Rows) -> None:
    rows.mask = torch.cat([rows.mask, torch.ones_like(rows.mask[:, :1])], dim=1)
    _forward(stack, rows, rows.next_tokens[:, None], rows.mask.sum(1, keepdim=True) - 1)


def _forward(stack: AdapterStack, rows: _Rows, tokens: Tensor, positions: Tensor) -> None:
    hidden = stack.model.base_model(
        input_ids=tokens,
        attention_mask=rows.mask,
        position_ids=positions,
        past_key_values=rows.cache,
        use_cache=True,
    ).last_hidden_state
    rows.next_tokens = stack.head(hidden[:, -1]).argmax(-1)


def _shrink(rows: _Rows, num_slots: int) -> _Rows:
    """Drop ended rows when at most ``SHRINK_AT`` of a slot's rows are still going."""
    per_slot = len(rows.completions) // num_slots
    ended = [c.stop_reason == "end_token" for c in rows.completions]
    slots = [range(n * per_slot, (n + 1) * per_slot) for n in range(num_slots)]
    keep = max(per_slot - sum(ended[row] for row in slot) for slot in slots)
    if keep > SHRINK_AT * per_slot:
        return rows
    chosen = [row for slot in slots for row in sorted(slot, key=ended.__getitem__)[:keep]]
    if chosen:
        index = torch.tensor(chosen, device=rows.mask.device)
        rows.cache.batch_select_indices(index)
        rows.mask, rows.next_tokens = rows.mask[index], rows.next_tokens[index]
    rows.completions = [rows.completions[i] for i in chosen]
    return rows
