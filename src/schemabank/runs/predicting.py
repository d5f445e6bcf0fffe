"""What teachers predict at every label, as those that learn from them keep it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank.config.train import DistillSettings
from schemabank.engine.batches import Encoded, collate
from schemabank.engine.decoding.decode import Advance
from schemabank.engine.loralayers import LORA
from schemabank.engine.loss import Head, gather_labelled
from schemabank.engine.softtargets import SoftTargets, label_starts
from schemabank.engine.stack import AdapterStack

ASKED_TOKENS = 16384  # of a batch that a teacher reads, at most, unless one example has more
ROWS = 512  # distributions that are in memory at once, of all teachers


@dataclass(frozen=True)
class Asking:
    """Whom a run learns from, and how.

    Attributes:
        teachers: their places among all that are asked.
        settings: how their mean prediction is mixed, and of how many tokens.
    """

    teachers: tuple[int, ...]
    settings: DistillSettings


def soft_targets(
    stack: AdapterStack,
    teachers: Sequence[Tensor],
    examples: Sequence[Encoded],
    asking: Sequence[Asking],
    *,
    advance: Advance = lambda _: None,
) -> list[SoftTargets]:
    """Return what each that asks learns: a mean prediction at every label, mixed with the label.

    Args:
        stack: of one slot, in which the teachers take turns.
        teachers: LoRA weights of each, ``(size,)``, on any device.
        examples: for training.
        asking: who learns from whom.
        advance: called with the number of examples that a teacher has read, or whose predictions
            were mixed for one that asks, since the last call.
    """
    starts = label_starts([example.num_labels for example in examples])
    sizes = [(int(starts[-1]), each.settings.top_k) for each in asking]
    found = [(torch.empty(size, dtype=torch.int32), torch.empty(size)) for size in sizes]
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].tokens))
    with stack.evaluating("off"):
        for batch in _batches(order, examples):
            chosen = [examples[index] for index in batch]
            learned = _of_batch(stack, teachers, chosen, asking, advance)
            for whole, parts in zip(found, learned, strict=True):
                for index, *rows in zip(batch, *parts, strict=True):
                    for each, own in zip(whole, rows, strict=True):
                        each[starts[index] : starts[index + 1]] = own
    return [SoftTargets(tokens.numpy(), shares.numpy(), starts) for tokens, shares in found]


def _batches(order: Sequence[int], examples: Sequence[Encoded]) -> Iterator[Sequence[int]]:
    """Examples, longest first, in batches of at most ``ASKED_TOKENS`` tokens or of one example."""
    start = 0
    while start < len(order):
        size = max(1, ASKED_TOKENS // len(examples[order[start]].tokens))
        yield order[start : start + size]
        start += size


def _of_batch(
    stack: AdapterStack,
    teachers: Sequence[Tensor],
    chosen: Sequence[Encoded],
    asking: Sequence[Asking],
    advance: Advance,
) -> list[tuple[tuple[Tensor, ...], ...]]:
    """For each that asks, the tokens and the shares of each example's labels, on the CPU."""
    batch = collate(
        [chosen],
        width=max(len(e.tokens) for e in chosen),
        num_labels=max(e.num_labels for e in chosen),
    ).to(stack.model.device)
    (real,) = batch.weights.flatten().nonzero(as_tuple=True)
    labels = batch.labels.flatten()[real]
    group, by_teacher = stack.lora.groups[LORA], []
    for weights in teachers:
        group.weights[0].copy_(weights)
        group.publish()
        picked = gather_labelled(stack.hidden(batch.tokens), batch.positions)
        by_teacher.append(picked[real])
        advance(len(chosen))
    sizes, found = [example.num_labels for example in chosen], []
    for each in asking:
        parts = _learned(by_teacher, labels, stack.head, each)
        found.append(tuple(part.split(sizes) for part in parts))
        advance(len(chosen))
    return found


def _learned(
    hidden: Sequence[Tensor], labels: Tensor, head: Head, asking: Asking
) -> Iterator[Tensor]:
    """Tokens and shares of a batch's labels, ``(row, k)`` each, on the CPU."""
    size = max(1, ROWS // len(asking.teachers))
    parts = []
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        own = torch.stack([hidden[place][rows] for place in asking.teachers], dim=1)
        parts.append(mixed(own, labels[rows], head, asking.settings))
    return (torch.cat(each).cpu() for each in zip(*parts, strict=True))


def mixed(
    hidden: Tensor, labels: Tensor, head: Head, settings: DistillSettings
) -> tuple[Tensor, Tensor]:
    """Return each label and its likeliest rivals, and their shares, ``(row, k)`` each.

    Args:
        hidden: ``(row, teacher, hidden)``.
        labels: ``(row,)``.
        head: the output layer.
        settings: how they are mixed, and how many there are.
    """
    logits = head(hidden.flatten(0, 1)).float() / settings.temperature
    chances = logits.softmax(-1).unflatten(0, hidden.shape[:2]).mean(1)
    first = chances.scatter(1, labels[:, None], 2.0)  # more than any chance
    tokens = first.topk(settings.top_k).indices
    shares = chances.gather(1, tokens)
    shares = settings.weight * shares / shares.sum(1, keepdim=True)
    shares[:, 0] += 1 - settings.weight
    return tokens.int(), shares
