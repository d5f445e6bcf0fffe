"""Evaluation: complete every item greedily, score it, and measure how likely the gold target is."""

from collections.abc import Sequence

import torch

from schemabank.bank import Routing
from schemabank.cohort.batches import Encoded, collate
from schemabank.cohort.decode import Advance, Completion, greedy, uncompiled
from schemabank.cohort.execute import Executor
from schemabank.cohort.loss import labelled_losses
from schemabank.cohort.stack import AdapterStack
from schemabank.metrics import (
    ItemRecord,
    best_constant,
    score_completion,
    summarise,
    wilson_interval,
)
from schemabank.models import BaseModel
from schemabank.prepare import Item

NLL_BATCH = 8


def evaluate(
    stack: AdapterStack,
    base: BaseModel,
    items: Sequence[Item],
    *,
    routing: Routing,
    max_new_tokens: int,
    batch_size: int,
    advance: Advance,
    executor: Executor | None = None,
) -> list[list[ItemRecord]]:
    """Score every slot's adapter on the same items.

    Args:
        stack: the adapters.
        base: the model they sit on.
        items: the questions.
        routing: bank removed, routed, or dense.
        max_new_tokens: limit of a completion.
        batch_size: completions decoded at once for each slot.
        advance: called with the number of items that all slots have completed since the last call.
        executor: runs the decoding step; without it, it runs one operation at a time.

    Returns:
        Records as ``[slot][item]``, in the order of ``items``.
    """
    longest_first = sorted(range(len(items)), key=lambda i: -len(items[i].prompt_tokens))
    chosen = [items[i] for i in longest_first]
    with stack.evaluating(routing):
        completions = greedy(
            stack,
            [item.prompt_tokens for item in chosen],
            max_new_tokens=max_new_tokens,
            end_token_ids=base.end_token_ids,
            batch_size=batch_size,
            executor=executor,
            advance=advance,
        )
        losses = gold_losses(stack, chosen)
    records: list[list[ItemRecord]] = []
    for done, lost in zip(completions, losses, strict=True):
        pairs = dict(zip(longest_first, zip(done, lost, strict=True), strict=True))
        records.append([_record(item, *pairs[i], base) for i, item in enumerate(items)])
    return records


def gold_losses(stack: AdapterStack, items: Sequence[Item]) -> list[list[tuple[float, float]]]:
    """Return the gold target's mean loss without and with its end token, ``[slot][item]``.

    Loss is in nats per token. Call it inside ``stack.evaluating(...)``.
    """
    results: list[list[tuple[float, float]]] = [[] for _ in range(stack.num_slots)]
    for start in range(0, len(items), NLL_BATCH):
        encoded = [_gold(item) for item in items[start : start + NLL_BATCH]]
        batch = collate(
            [encoded] * stack.num_slots,
            width=max(len(e.tokens) for e in encoded),
            num_labels=max(e.num_labels for e in encoded),
        ).to(stack.model.device)
        with uncompiled(stack):
            hidden = stack.hidden(batch.tokens)
        losses = labelled_losses(hidden, batch, stack.head)
        for slot, rows in enumerate(losses.view_as(batch.weights).cpu().double()):
            for example, row in zip(encoded, rows, strict=True):
                values = row[: example.num_labels]
                without = values[:-1].mean() if len(values) > 1 else torch.zeros(())
                results[slot].append((without.item(), values.mean().item()))
    return results


def summaries(records: Sequence[ItemRecord]) -> dict[str, dict[str, object]]:
    """Summarise every group of items, each with a Wilson interval and the best constant answer."""
    groups = list(dict.fromkeys(r.group for r in records))
    return {group: _summary([r for r in records if r.group == group]) for group in groups}


def _summary(records: Sequence[ItemRecord]) -> dict[str, object]:
    answer, share = best_constant([r.gold for r in records])
    low, high = wilson_interval(sum(r.correct for r in records), len(records))
    return {
        **summarise(records),
        "correct_interval_95": [low, high],
        "best_constant_answer": answer,
        "best_constant_correct": share,
    }


def _gold(item: Item) -> Encoded:
    tokens = (*item.prompt_tokens, *item.target_tokens)
    return Encoded(id=item.id, tokens=tokens, label_start=len(item.prompt_tokens))


def _record(
    item: Item, done: Completion, losses: tuple[float, float], base: BaseModel
) -> ItemRecord:
    completion = str(base.tokenizer.decode(done.tokens, skip_special_tokens=False))
    score = score_completion(completion, item.gold)
    return ItemRecord(
        id=item.id,
        group=item.group,
        prompt=item.prompt,
        completion=completion,
        gold=item.gold,
        strict=score.extraction.strict,
        flexible=score.extraction.flexible,
        extracted=score.extraction.answer,
        strict_correct=score.strict,
        flexible_correct=score.flexible,
        correct=score.correct,
        new_tokens=done.num_new_tokens,
        stop_reason=done.stop_reason,
        gold_nll=losses[0],
        gold_nll_with_end=losses[1],
    )
