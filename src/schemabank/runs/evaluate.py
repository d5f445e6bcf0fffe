"""Evaluation: complete every item, score it, and measure how likely the gold target is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import fsum

import torch
from torch import Tensor

from schemabank.config.settings import EvalSettings
from schemabank.config.task import TaskSettings
from schemabank.engine.batches import Encoded, collate
from schemabank.engine.decoding.completion import Completion, Memory, Stopped
from schemabank.engine.decoding.decode import Advance, generate
from schemabank.engine.decoding.sampling import Sampling, sample_keys
from schemabank.engine.decoding.slotwise import generate_by_slot
from schemabank.engine.execute import Executor
from schemabank.engine.loss import labelled_losses
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.bank import Routing
from schemabank.models.basemodel import BaseModel
from schemabank.runs.recall import Losses, Recall
from schemabank.tasks import Item
from schemabank.tasks.catalog import TASKS, metric_of
from schemabank.tasks.scoring.scores import METRICS, ItemRecord, Metric, Scored, StopReason
from schemabank.tasks.seams import continuation_text

NLL_BATCH = 8
NLL_TOKENS = 8192  # of a batch, at most, unless a single item has more

Judge = Callable[[Sequence[tuple[Item, str]]], list[Scored]]


@dataclass(frozen=True)
class Procedure:
    """How items are completed and scored.

    Attributes:
        metric: how completions are scored.
        routing: bank removed, routed, or dense.
        max_new_tokens: limit of a completion.
        batch_size: completions decoded at once for each slot.
        stop: texts that end a completion; it is cut there before it is scored.
        temperature: tokens are drawn from the logits divided by it; 0: the likeliest one is taken.
        top_p: tokens are drawn from the most likely ones that hold this probability.
        sampling_seed: seed of the draws.
        judge: scores all completions, where the metric cannot.
    """

    metric: Metric
    routing: Routing
    max_new_tokens: int
    batch_size: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    sampling_seed: int = 0
    judge: Judge | None = None

    @classmethod
    def of(cls, task: TaskSettings, settings: EvalSettings, *, routing: Routing) -> "Procedure":
        """Take it from a run's settings."""
        return cls(
            metric=METRICS[metric_of(task)],
            routing=routing,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            stop=task.stop,
            temperature=settings.temperature,
            top_p=settings.top_p,
            sampling_seed=settings.sampling_seed,
            judge=_judge_of(task),
        )

    def scores(self, completions: Sequence[tuple[Item, str]]) -> list[Scored]:
        """Score items' completions, by the judge if there is one."""
        if self.judge is not None:
            return self.judge(completions)
        return [self.metric.score(text, item.golds) for item, text in completions]

    def sampling(self, items: Sequence[Item]) -> Sampling | None:
        """How the items' tokens are drawn, if they are."""
        if self.temperature == 0:
            return None
        keys = sample_keys(self.sampling_seed, [(item.id, item.sample) for item in items])
        return Sampling(keys=keys, temperature=self.temperature, top_p=self.top_p)


def evaluate(
    stack: AdapterStack,
    base: BaseModel,
    items: Sequence[Item],
    how: Procedure,
    *,
    advance: Advance,
    executor: Executor | None = None,
    recall: Recall | None = None,
) -> list[list[ItemRecord]]:
    """Score every slot's adapter on the same items.

    Args:
        stack: the adapters.
        base: the model they sit on.
        items: the questions, samples of the same one next to each other.
        how: decoding and metric.
        advance: called with the number of items that all slots have completed since the last call.
        executor: runs the decoding step; without it, it runs one operation at a time.
        recall: what is known of this evaluation from an earlier call.

    Returns:
        Records as ``[slot][item]``, in the order of ``items``.
    """
    ends = dict.fromkeys(item.end_text for item in items if item.end_text)
    how = replace(how, stop=(*how.stop, *ends))
    recall = recall or Recall()
    longest_first = sorted(range(len(items)), key=lambda i: -len(items[i].prompt_tokens))
    chosen = [items[i] for i in longest_first]
    questions = [item for item in chosen if item.sample == 0]
    completions: Sequence[Sequence[Completion | None]] = [[None] * len(items)] * stack.num_slots

    def step(done: int) -> None:
        advance(done)
        recall.look()

    with stack.evaluating(how.routing), recall:
        if how.metric.decodes:
            completions = complete(
                stack, base, chosen, how, advance=step, executor=executor, memory=recall
            )
            losses = gold_losses(stack, questions, advance=lambda _: recall.look(), recall=recall)
        else:
            losses = gold_losses(stack, questions, advance=step, recall=recall)
    records: list[list[ItemRecord]] = []
    for done, lost in zip(completions, losses, strict=True):
        completed = dict(zip(longest_first, done, strict=True))
        loss_of = {q.id: loss for q, loss in zip(questions, lost, strict=True)}
        records.append(_slot_records(items, completed, loss_of, base, how))
    return records


def complete(
    stack: AdapterStack,
    base: BaseModel,
    items: Sequence[Item],
    how: Procedure,
    *,
    advance: Advance = lambda _: None,
    executor: Executor | None = None,
    memory: Memory | None = None,
) -> list[list[Completion]]:
    """Complete every item's prompt with every slot's adapter, ``[slot][item]``.

    Call it inside ``stack.evaluating(...)``. The arguments are those of :func:`evaluate`, with
    items of similar length next to each other.
    """
    decode = partial(generate, executor=executor) if base.by_slot is None else generate_by_slot
    return decode(
        stack,
        [item.prompt_tokens for item in items],
        max_new_tokens=how.max_new_tokens,
        end_token_ids=base.end_token_ids,
        batch_size=how.batch_size,
        sampling=how.sampling(items),
        stopped=_stop_test(base, how.stop),
        advance=advance,
        memory=memory,
    )


def _slot_records(
    items: Sequence[Item],
    completed: Mapping[int, Completion | None],
    loss_of: Mapping[str, Losses],
    base: BaseModel,
    how: Procedure,
) -> list[ItemRecord]:
    """The records of a slot from its completions, by an item's place, and losses, by its id."""
    texts = [completion_text(item, completed[i], base, how.stop) for i, item in enumerate(items)]
    scored = how.scores([(item, text) for item, (text, _) in zip(items, texts, strict=True)])
    return [
        _item_record(item, completed[i], loss_of[item.id], texts[i], scored[i])
        for i, item in enumerate(items)
    ]


def _judge_of(task: TaskSettings) -> Judge | None:
    """What scores a task's completions in place of a metric, such as a sandbox for code."""
    of_task = TASKS[task.name].judge
    if of_task is None or metric_of(task) != TASKS[task.name].metric:
        return None

    def judge(pairs: Sequence[tuple[Item, str]]) -> list[Scored]:
        return [
            Scored(code or None, {"correct": float(v.passed)}, {"reason": v.reason})
            for code, v in of_task(task, pairs)
        ]

    return judge


def gold_losses(
    stack: AdapterStack,
    items: Sequence[Item],
    *,
    advance: Advance = lambda _: None,
    recall: Recall | None = None,
) -> list[list[Losses]]:
    """Return the gold target's mean loss without and with its end token, ``[slot][item]``.

    Loss is in nats per token; both are the same for a target without an end token. Call it inside
    ``stack.evaluating(...)``. A batch of which all losses are known is not computed.
    """
    recall = recall or Recall()
    found: list[Sequence[Losses]] = []  # of every slot, by item
    for chosen in nll_batches([_gold_example(item) for item in items]):
        batch = range(len(found), len(found) + len(chosen))
        known = [losses for n in batch if (losses := recall.losses(n)) is not None]
        if len(known) < len(chosen):
            rows = zip(*_batch_losses(stack, chosen), strict=True)
            known = [
                [_with_and_without_end(items[n], row) for row in own]
                for n, own in zip(batch, rows, strict=True)
            ]
            for n, losses in zip(batch, known, strict=True):
                recall.measured(n, losses)
        found += known
        advance(len(chosen))
    return [[own[slot] for own in found] for slot in range(stack.num_slots)]


def target_losses(
    stack: AdapterStack, examples: Sequence[Encoded], *, advance: Advance = lambda _: None
) -> list[list[Tensor]]:
    """Return the loss of every token that an example learns, ``[slot][example]``: ``(label,)``.

    Loss is in nats, on the CPU. Call it inside ``stack.evaluating(...)``.

    Args:
        stack: the adapters.
        examples: examples of similar length should be neighbours.
        advance: called with the number of examples that were measured since the last call.
    """
    results: list[list[Tensor]] = [[] for _ in range(stack.num_slots)]
    for chosen in nll_batches(examples):
        for own, rows in zip(results, _batch_losses(stack, chosen), strict=True):
            own += rows
        advance(len(chosen))
    return results


def _batch_losses(stack: AdapterStack, chosen: Sequence[Encoded]) -> list[list[Tensor]]:
    """The losses of :func:`target_losses` for examples that are computed at once."""
    batch = collate(
        [chosen] * stack.num_slots,
        width=max(len(e.tokens) for e in chosen),
        num_labels=max(e.num_labels for e in chosen),
    ).to(stack.model.device)
    with stack.uncompiled():
        hidden = stack.hidden(batch.tokens)
    losses = labelled_losses(hidden, batch, stack.head)
    return [
        [row[: e.num_labels].clone() for e, row in zip(chosen, rows, strict=True)]
        for rows in losses.view_as(batch.weights).cpu().double()
    ]


def mean_losses(
    stack: AdapterStack, examples: Sequence[Encoded], *, advance: Advance = lambda _: None
) -> list[float]:
    """Return every slot's loss in nats per learned token: a mean over the tokens of all examples.

    Call it inside ``stack.evaluating(...)``.

    Args:
        stack: the adapters.
        examples: in any order.
        advance: called with the number of examples that were measured since the last call.
    """
    longest_first = sorted(examples, key=lambda example: -len(example.tokens))
    num_labels = sum(example.num_labels for example in examples)
    return [
        fsum(row.sum().item() for row in rows) / num_labels
        for rows in target_losses(stack, longest_first, advance=advance)
    ]


def _with_and_without_end(item: Item, losses: Tensor) -> Losses:
    """An item's mean loss without and with its end token."""
    text = losses[: -item.num_end] if item.has_end else losses
    without = text.mean() if len(text) else torch.zeros(())
    return without.item(), losses.mean().item()


def nll_batches(examples: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """Examples in their order, in batches of at most ``NLL_TOKENS`` tokens with their padding."""
    start = 0
    while start < len(examples):
        stop, width = start, 0
        while stop < len(examples) and stop - start < NLL_BATCH:
            width = max(width, len(examples[stop].tokens))
            if stop > start and width * (stop - start + 1) > NLL_TOKENS:
                break
            stop += 1
        yield examples[start:stop]
        start = stop


def _gold_example(item: Item) -> Encoded:
    tokens = (*item.prompt_tokens, *item.target_tokens)
    return Encoded(id=item.id, tokens=tokens, label_start=len(item.prompt_tokens))


def _stop_test(base: BaseModel, stop: Sequence[str]) -> Stopped:
    """Return a test of whether the newest tokens end a stop text.

    It decodes the last few tokens first, and the whole completion only if these hold a stop text: a
    text has at most as many tokens as bytes, so that a few tokens are enough to see it end.
    """
    longest = 1 + max((len(mark.encode()) for mark in stop), default=0)

    def holds(before: Sequence[int], tokens: Sequence[int]) -> bool:
        text = continuation_text(before, tokens, base.tokenizer)
        return any(mark in text for mark in stop)

    def stopped(prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        if not stop:
            return False
        last = tokens[-longest:] if len(tokens) >= longest else [*prompt[-1:], *tokens]
        return holds((), last) and holds(prompt, tokens)

    return stopped


def completion_text(
    item: Item, done: Completion | None, base: BaseModel, stop: Sequence[str]
) -> tuple[str, StopReason]:
    """Return a completion up to the first stop text, and why it ended.

    What the item's template writes before every answer is taken away.
    """
    if done is None:
        return "", "not_decoded"
    text = continuation_text(item.prompt_tokens, done.tokens, base.tokenizer)
    if item.start_text and text.lstrip().startswith(item.start_text):
        text = text.lstrip().removeprefix(item.start_text).lstrip("\n")
    ends = [text.find(mark) for mark in stop if mark in text]
    return (text[: min(ends)], "stop_text") if ends else (text, done.stop_reason)


def _item_record(
    item: Item,
    done: Completion | None,
    losses: Losses,
    text: tuple[str, StopReason],
    scored: Scored,
) -> ItemRecord:
    completion, stop_reason = text
    return ItemRecord(
        id=item.id,
        sample=item.sample,
        group=item.group,
        cluster=item.cluster,
        prompt=item.prompt,
        completion=completion,
        golds=item.golds,
        extracted=scored.extracted,
        readings=scored.readings,
        scores=scored.scores,
        new_tokens=0 if done is None else done.num_new_tokens,
        stop_reason=stop_reason,
        gold_tokens=len(item.target_tokens),
        gold_nll=losses[0],
        gold_nll_with_end=losses[1],
    )
