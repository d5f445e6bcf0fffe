"""Batches of fixed shapes: buckets by token length, and a schedule that all slots share.

Examples of similar length share a batch, padded on the right to the bucket's width. Which bucket
step *i* of a run uses depends on the data set and the batch size alone, so all slots agree on every
shape. Which examples fill it depends on the run's seed, so no neighbour changes a run's data.
Padding is known by its position, never by a token id. There is no attention mask, because under
causal attention a real token never sees what is to its right.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemabank.common.errors import InputError
from schemabank.common.stored import Codec

WIDTH_MULTIPLE = 4  # tokens; all widths are multiples of it
EMPTY = -1  # a row of a batch that holds no example


@dataclass(frozen=True)
class Encoded:
    """A tokenised example.

    Attributes:
        id: the example's id.
        tokens: prompt, completion and, if the settings say so, an end token.
        label_start: index of the first token that the loss sees; at least 1, since a token is
            predicted from the one before.
        cut: whether the length limit cut tokens off.
        gaps: begin and end of each range behind ``label_start`` that the loss does not see, such as
            the user's later turns of a chat; ascending, not empty and apart.
    """

    id: str
    tokens: tuple[int, ...]
    label_start: int
    cut: bool = False
    gaps: tuple[tuple[int, int], ...] = ()

    @cached_property
    def array(self) -> npt.NDArray[np.int32]:
        """The tokens as an array: a step copies that six times faster than a tuple."""
        return np.array(self.tokens, dtype=np.int32)

    @property
    def num_labels(self) -> int:
        """How many tokens the loss sees."""
        return len(self.tokens) - self.label_start - sum(stop - start for start, stop in self.gaps)

    @cached_property
    def labelled(self) -> npt.NDArray[np.int64]:
        """Indices of the tokens that the loss sees."""
        seen = np.arange(self.label_start, len(self.tokens))
        for start, stop in self.gaps:
            seen = seen[(seen < start) | (seen >= stop)]
        return seen


def _packed(example: Encoded) -> bytes:
    name = example.id.encode()
    gaps = [place for gap in example.gaps for place in gap]
    head = [len(name), example.label_start, example.cut, len(gaps), *gaps]
    return np.array([*head, *example.tokens], dtype=np.int32).tobytes() + name


def _unpacked(packed: bytes) -> Encoded:
    length, start, cut, num_places = np.frombuffer(packed, dtype=np.int32, count=4).tolist()
    text = len(packed) - length
    numbers = np.frombuffer(packed[16:text], dtype=np.int32)
    places, tokens = numbers[:num_places].tolist(), numbers[num_places:]
    return Encoded(
        id=packed[text:].decode(),
        tokens=tuple(tokens.tolist()),
        label_start=start,
        cut=bool(cut),
        gaps=tuple(zip(places[::2], places[1::2], strict=True)),
    )


# A token is an object of its own, beside its place in the tuple.
ENCODED = Codec(write=_packed, read=_unpacked, size=lambda example: 36 * len(example.tokens))


def encode(
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    example_id: str,
    max_length: int,
    completion_only: bool,
) -> Encoded:
    """Join the token ids of prompt and completion, and cut off what exceeds the limit.

    Raises:
        InputError: no part of the completion is left, or there is no token before it.
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


def encode_turns(
    pieces: Sequence[tuple[Sequence[int], bool]],
    *,
    example_id: str,
    max_length: int,
    completion_only: bool,
) -> Encoded:
    """Join the token ids of a chat's pieces, and cut off what exceeds the limit.

    Args:
        pieces: tokens, and whether the loss sees them; the first piece is not seen, the last is.
        example_id: the example's id.
        max_length: most tokens.
        completion_only: whether the loss leaves out the pieces that are not to be seen.

    Raises:
        InputError: nothing that the loss sees is left, or there is no token before it.
    """
    (first, *rest) = pieces
    found = encode(
        first[0],
        [token for tokens, _ in rest for token in tokens],
        example_id=example_id,
        max_length=max_length,
        completion_only=completion_only,
    )
    ends = list(accumulate(len(tokens) for tokens, _ in pieces))
    ranges = zip(ends, ends[1:], rest, strict=False)
    gaps = [(start, min(stop, max_length)) for start, stop, (_, seen) in ranges if not seen]
    kept = tuple((start, stop) for start, stop in gaps if start < stop)
    return replace(found, gaps=kept if completion_only else ())


@dataclass(frozen=True)
class Bucket:
    """Batches of one shape.

    Attributes:
        width: tokens of a row.
        num_labels: labels of a row, at most.
        members: indices of the examples whose own width this is; there may be millions.
    """

    width: int
    num_labels: int
    members: "array[int]"


@dataclass(frozen=True)
class Schedule:
    """The shapes of every step, the same in every slot.

    Every epoch has the same buckets, in an order of its own. A few orders take turns. Two runs can
    share steps only if all their shapes from then on are equal. If no order ever came again, no run
    could take over the slot of a run that has ended.

    Attributes:
        buckets: by growing width.
        orders: index of the bucket of each step of an epoch, for the epochs of one cycle.
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
        """Steps after which the shapes repeat."""
        return len(self.orders) * self.steps_per_epoch

    def bucket(self, step: int) -> Bucket:
        """Return the bucket of a run's step, from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.buckets[self.order(epoch)[position]]

    def order(self, epoch: int) -> tuple[int, ...]:
        """Return the index of the bucket of every step of an epoch."""
        return self.orders[epoch % len(self.orders)]

    def widths(self) -> npt.NDArray[np.int64]:
        """Return the width of every example's own bucket."""
        own = np.empty(sum(len(bucket.members) for bucket in self.buckets), np.int64)
        for bucket in self.buckets:
            own[np.asarray(bucket.members)] = bucket.width
        return own

    def padding_ratio(self, num_tokens: int) -> float:
        """Return the share of an epoch's positions without a token, of all examples together."""
        positions = sum(self.buckets[b].width for b in self.orders[0]) * self.batch_size
        return 1 - num_tokens / positions

    def rows(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Return the examples of every step of an epoch, ``(step, batch)``; ``EMPTY`` for none.

        Examples that do not fill a batch of their bucket move up to the next wider one. So only the
        widest bucket can have a batch with empty rows, and every example is shown once.
        """
        rng = np.random.default_rng([seed, epoch])
        order = np.asarray(self.order(epoch))
        rows = np.full((len(order), self.batch_size), EMPTY, np.int64)
        left = np.empty(0, np.int64)
        # Which bucket a step has is the schedule's choice, the same for all seeds; which of the
        # bucket's batches comes then is drawn here.
        for index, bucket in enumerate(self.buckets):
            pool = rng.permutation(np.concatenate([left, np.asarray(bucket.members)]))
            full = len(pool) // self.batch_size
            drawn, left = np.split(pool, [full * self.batch_size])
            rows[np.flatnonzero(order == index)[:full]] = drawn.reshape(full, self.batch_size)
        if len(left):
            rows[np.flatnonzero(order == len(self.buckets) - 1)[-1], : len(left)] = left
        return rows


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
    # One pass, since each reads what lies in a file anew.
    sizes = ((round_up(len(e.tokens), WIDTH_MULTIPLE), e.num_labels) for e in examples)
    widths, num_labels = np.fromiter(sizes, np.dtype((np.int64, 2)), len(examples)).T
    bounds = _best_bounds(widths, max_buckets)
    buckets_of = np.searchsorted(bounds, widths)
    members = [array("q", np.flatnonzero(buckets_of == i).tobytes()) for i in range(len(bounds))]
    # Examples may move up to a wider bucket, which needs room for their labels, too.
    labels = accumulate((int(num_labels[np.asarray(inside)].max()) for inside in members), max)
    buckets = tuple(map(Bucket, bounds, labels, members))
    order = _sorted_steps(buckets, batch_size)
    # Seeded by what decides the shapes, so that all runs with these shapes have the same orders.
    fingerprint = hashlib.sha256(repr((batch_size, bounds, order)).encode()).digest()
    rng = np.random.default_rng(list(fingerprint))
    orders = tuple(tuple(rng.permutation(order).tolist()) for _ in range(num_orders))
    return Schedule(buckets=buckets, orders=orders, batch_size=batch_size)


def _sorted_steps(buckets: Sequence[Bucket], batch_size: int) -> list[int]:
    """Return the bucket of every step of an epoch in ascending order; see :meth:`Schedule.rows`."""
    order, left = list[int](), 0
    for index, bucket in enumerate(buckets):
        full, left = divmod(left + len(bucket.members), batch_size)
        order += [index] * full
    return order + [len(buckets) - 1] * (left > 0)


@dataclass(frozen=True)
class Batch:
    """One step's input for all slots.

    Attributes:
        tokens: ``(slot, batch, token)``, right-padded.
        real: ``(slot, batch, token)``, float32, 1 for tokens and 0 for padding.
        positions: ``(slot, batch, label)``, the position before each label, which predicts it.
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
        """Return shape and type of every field; ``leading`` is the slots and the rows a slot."""
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
        arrays: what to overwrite, by the names of :class:`Batch`'s fields.
        rows: examples, ``(slot, batch)``; ``None`` for a row without one.
        padding: token id of padded positions, which no result depends on.
    """
    tokens, real, positions, labels, weights = (arrays[f] for f in Batch.__dataclass_fields__)
    # An array still holds an earlier step's rows. Padded positions and labels are 0, a valid index.
    for each in (real, positions, labels, weights):
        each.fill(0)
    tokens.fill(padding)
    for slot, of_slot in enumerate(rows):
        for row, example in enumerate(of_slot):
            if example is None:
                continue
            length, count = len(example.tokens), example.num_labels
            tokens[slot, row, :length] = example.array
            real[slot, row, :length] = 1
            positions[slot, row, :count] = example.labelled - 1
            labels[slot, row, :count] = example.array[example.labelled]
            weights[slot, row, :count] = 1


def collate(
    rows: Sequence[Sequence[Encoded | None]], *, width: int, num_labels: int, padding: int = 0
) -> Batch:
    """Lay out the rows of every slot, ``(slot, batch)``, in new tensors; see :func:`fill_rows`."""
    shapes = Batch.shapes((len(rows), len(rows[0])), width=width, num_labels=num_labels)
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in shapes.items()}
    fill_rows({name: t.numpy() for name, t in tensors.items()}, rows, padding=padding)
    return Batch(**tensors)


def prepend(example: Encoded, prefix: Sequence[int], *, after: int, in_loss: bool) -> Encoded:
    """Insert a prefix into an example, behind a beginning token if there is one.

    Args:
        example: the example without a prefix.
        prefix: token ids.
        after: how many tokens stay in front of the prefix.
        in_loss: whether the loss is on the whole text, so that the prefix has labels too.
    """
    tokens = (*example.tokens[:after], *prefix, *example.tokens[after:])
    shift = len(prefix)
    start = example.label_start if in_loss else example.label_start + shift
    gaps = tuple((begin + shift, end + shift) for begin, end in example.gaps)
    return replace(example, tokens=tokens, label_start=start, gaps=gaps)


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple


def _best_bounds(widths: npt.NDArray[np.int64], max_buckets: int) -> list[int]:
    """Return upper bounds of the buckets that minimise padded positions, by dynamic programming.

    ``cost[used, stop]`` is the least number of positions for the ``stop`` shortest widths in
    ``used`` buckets, and ``choice[used, stop]`` where the last of these buckets begins.
    """
    values, counts = np.unique(widths, return_counts=True)
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
