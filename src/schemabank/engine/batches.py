"""Batches of fixed shapes: token-length buckets and a schedule that all slots share.

Examples of similar length share a batch, padded on the right to the bucket's width. Which bucket
step *i* of a run uses depends on the data set and the batch size alone, so all slots agree on every
shape; which examples fill it depends on the run's seed alone, so no neighbour changes a run's data.
Padding is told from text by position, never by token id: there is no mask, because under causal
attention a real token never sees what is to its right.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from schemabank.common.errors import InputError

WIDTH_MULTIPLE = 4
EMPTY = -1  # a row of a batch that holds no example


@dataclass(frozen=True)
class Encoded:
    """A tokenised example.

    Attributes:
        id: the example's id.
        tokens: prompt, completion and, where asked for, end token.
        label_start: index of the first token that the loss sees; at least 1.
        cut: whether the length limit cut tokens off.
    """

    id: str
    tokens: tuple[int, ...]
    label_start: int
    cut: bool = False

    @property
    def num_labels(self) -> int:
        """How many tokens the loss sees."""
        return len(self.tokens) - self.label_start


def encode(
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    example_id: str,
    max_length: int,
    completion_only: bool,
) -> Encoded:
    """Join prompt and completion token ids, and cut what exceeds the limit on the right.

    Raises:
        InputError: nothing of the completion is left, or there is no token before it.
    """
    if not prompt or not completion:
        empty = "completion" if prompt else "prompt"
        raise InputError(f"example {example_id!r} has an empty {empty}: give it some text")
    tokens = (*prompt, *completion)
    if len(prompt) >= max_length:
        raise InputError(
            f"example {example_id!r}: its prompt alone has {len(prompt)} tokens, so the limit "
            f"task.max_length = {max_length} cuts off its whole completion: allowed is at least "
            f"{len(prompt) + 1}, raise the limit or leave the example out"
        )
    return Encoded(
        id=example_id,
        tokens=tokens[:max_length],
        label_start=len(prompt) if completion_only else 1,
        cut=len(tokens) > max_length,
    )


@dataclass(frozen=True)
class Bucket:
    """Batches of one shape: ``width`` tokens, of which at most ``num_labels`` have a loss."""

    width: int
    num_labels: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """The shapes of every step, the same in every slot.

    An epoch has every bucket as often as the next one, in another order. Some orders take turns:
    two runs can share their steps only where the one's shapes from there on are the other's, so
    that if all epochs differed, no run could ever take over the slot of one that has ended.

    Attributes:
        buckets: by growing width.
        orders: bucket of each step of an epoch; of one epoch after the other, and then again.
        batch_size: rows a slot.
    """

    buckets: tuple[Bucket, ...]
    orders: tuple[tuple[int, ...], ...]
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every example once."""
        return len(self.orders[0])

    @property
    def cycle(self) -> int:
        """Steps after which the shapes come again."""
        return len(self.orders) * self.steps_per_epoch

    def bucket(self, step: int) -> Bucket:
        """Return the bucket of a run's step, from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.buckets[self.order(epoch)[position]]

    def order(self, epoch: int) -> tuple[int, ...]:
        """Return the index of the bucket of every step of an epoch."""
        return self.orders[epoch % len(self.orders)]

    def widths(self) -> list[int]:
        """Width of every example's own bucket."""
        own = {index: bucket.width for bucket in self.buckets for index in bucket.members}
        return [own[index] for index in range(len(own))]

    def padding_ratio(self, lengths: Sequence[int]) -> float:
        """Share of an epoch's positions that hold no token, from every example's length."""
        positions = sum(self.buckets[b].width for b in self.orders[0]) * self.batch_size
        return 1 - sum(lengths) / positions

    def rows(self, seed: int, epoch: int) -> list[list[int]]:
        """Return the examples of every step of an epoch, ``EMPTY`` where a row is left over.

        What doesn't fill a batch of its bucket moves up to the next wider one.
        """
        rng = np.random.default_rng([seed, epoch])
        batches: list[list[list[int]]] = []
        left: list[int] = []
        for bucket in self.buckets:
            pool = rng.permutation([*left, *bucket.members]).tolist()
            full = len(pool) // self.batch_size * self.batch_size
            batches.append([pool[i : i + self.batch_size] for i in range(0, full, self.batch_size)])
            left = pool[full:]
        if left:
            batches[-1].append(left + [EMPTY] * (self.batch_size - len(left)))
        queues = [iter(b) for b in batches]
        return [next(queues[bucket]) for bucket in self.order(epoch)]


def plan_schedule(
    examples: Sequence[Encoded], *, batch_size: int, max_buckets: int, num_orders: int
) -> Schedule:
    """Choose bucket widths that waste the fewest positions, and the orders of steps.

    Args:
        examples: all training examples.
        batch_size: rows a slot.
        max_buckets: distinct widths, at most.
        num_orders: orders of the buckets that take turns, one an epoch.
    """
    widths = [_round_up(len(e.tokens)) for e in examples]
    bounds = _best_bounds(widths, max_buckets)
    members: list[list[int]] = [[] for _ in bounds]
    for index, width in enumerate(widths):
        members[int(np.searchsorted(bounds, width))].append(index)
    buckets, labels = [], 0
    for width, inside in zip(bounds, members, strict=True):
        labels = max(labels, *(examples[i].num_labels for i in inside))
        buckets.append(Bucket(width=width, num_labels=labels, members=tuple(inside)))
    order: list[int] = []
    left = 0
    for index, bucket in enumerate(buckets):
        full, left = divmod(left + len(bucket.members), batch_size)
        order += [index] * full
    order += [len(buckets) - 1] * (left > 0)
    fingerprint = hashlib.sha256(repr((batch_size, bounds, order)).encode()).digest()
    rng = np.random.default_rng(list(fingerprint))
    orders = tuple(tuple(rng.permutation(order).tolist()) for _ in range(num_orders))
    return Schedule(buckets=tuple(buckets), orders=orders, batch_size=batch_size)


@dataclass(frozen=True)
class Batch:
    """One step's input for all slots.

    Attributes:
        tokens: ``(slot, batch, token)``, right-padded.
        real: ``(slot, batch, token)``, float32, 1 for tokens and 0 for padding.
        positions: ``(slot, batch, label)``, position whose next token is the label.
        labels: ``(slot, batch, label)``.
        weights: ``(slot, batch, label)``, float32, 0 where a row has fewer labels.
    """

    tokens: Tensor
    real: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor

    @classmethod
    def shapes(
        cls, leading: tuple[int, int], *, width: int, num_labels: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every field for ``leading``: slots and rows a slot."""
        tokens, labels = (*leading, width), (*leading, num_labels)
        return {
            "tokens": (tokens, torch.int64),
            "real": (tokens, torch.float32),
            "positions": (labels, torch.int64),
            "labels": (labels, torch.int64),
            "weights": (labels, torch.float32),
        }

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return Batch(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))


def fill_rows(
    arrays: Mapping[str, np.ndarray],
    rows: Sequence[Sequence[Encoded | None]],
    *,
    padding: int = 0,
) -> None:
    """Overwrite a batch's arrays with the rows of every slot.

    Args:
        arrays: by the names of :class:`Batch`'s fields.
        rows: examples, ``(slot, batch)``; ``None`` for a row without one.
        padding: token id of padded positions, which no result depends on.
    """
    tokens, real, positions, labels, weights = (arrays[f] for f in Batch.__dataclass_fields__)
    for array in (real, positions, labels, weights):
        array.fill(0)
    tokens.fill(padding)
    for at in np.ndindex(tokens.shape[:2]):
        example = rows[at[0]][at[1]]
        if example is None:
            continue
        length, count = len(example.tokens), example.num_labels
        tokens[at][:length] = example.tokens
        real[at][:length] = 1
        positions[at][:count] = np.arange(example.label_start - 1, length - 1)
        labels[at][:count] = tokens[at][example.label_start : length]
        weights[at][:count] = 1


def collate(
    rows: Sequence[Sequence[Encoded | None]], *, width: int, num_labels: int, padding: int = 0
) -> Batch:
    """Lay out the rows of every slot, ``(slot, batch)``, in new tensors; see :func:`fill_rows`."""
    shapes = Batch.shapes((len(rows), len(rows[0])), width=width, num_labels=num_labels)
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in shapes.items()}
    fill_rows({name: t.numpy() for name, t in tensors.items()}, rows, padding=padding)
    return Batch(**tensors)


def prepend(example: Encoded, prefix: Sequence[int], *, after: int, in_loss: bool) -> Encoded:
    """Insert ``prefix`` behind the first ``after`` tokens, where a beginning token stands.

    Args:
        example: the example without a prefix.
        prefix: token ids.
        after: how many tokens stay in front of it.
        in_loss: whether the loss is on the whole text, so that the prefix has labels too.
    """
    tokens = (*example.tokens[:after], *prefix, *example.tokens[after:])
    start = example.label_start if in_loss else example.label_start + len(prefix)
    return replace(example, tokens=tokens, label_start=start)


def _round_up(length: int) -> int:
    return -(-length // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def _best_bounds(widths: Sequence[int], max_buckets: int) -> list[int]:
    """Upper bounds of the buckets that minimise padded positions, by dynamic programming."""
    values, counts = np.unique(np.asarray(widths), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    num = len(values)
    cost = np.full((min(max_buckets, num) + 1, num + 1), np.inf)
    cost[0, 0] = 0
    choice = np.zeros(cost.shape, dtype=np.int64)
    for used in range(1, len(cost)):
        for stop in range(1, num + 1):
            options = cost[used - 1, :stop] + (before[stop] - before[:stop]) * values[stop - 1]
            choice[used, stop] = int(options.argmin())
            cost[used, stop] = options.min()
    used, stop = int(cost[:, num].argmin()), num
    bounds: list[int] = []
    while stop:
        bounds.append(int(values[stop - 1]))
        used, stop = used - 1, int(choice[used, stop])
    return bounds[::-1]
