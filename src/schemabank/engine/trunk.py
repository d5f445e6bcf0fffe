"""The base model's states below the first part, computed once for each example and kept.

While LoRA is untouched, these states are the same in all runs and epochs. So in the document's
first stage only the rest of the model has to run in every step.

All kept states lie in one tensor, one row's tokens after another's. A step gathers its rows from
there, by the position of each of its tokens.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from schemabank.engine.execute import Executor, Staging

# Two positions belong to no row, because shapes are fixed and some place must stand for padding.
PADDING = 0  # always zeros: read for what a step has behind a row's end
DISCARDED = 1  # never read: takes what a batch computes behind a row's end, or for no row
FIRST = 2  # the first row's first position


@dataclass(frozen=True)
class TrunkRow:
    """A row whose states are needed.

    Attributes:
        key: tells it from all other rows.
        tokens: token ids, at most ``width``.
        width: the number of positions a row of the batch in which its states are computed. It
            belongs to the row and not to the step, because another width may round differently: so
            a row's states have the same bits in all steps.
        lasting: whether another step is likely to need it.
    """

    key: Hashable
    tokens: Sequence[int]
    width: int
    lasting: bool = True


class TrunkStates:
    """Computes and keeps states up to a limit; states that do not fit are computed each time.

    Nothing is evicted. Every epoch needs every row once, so a cache that evicts the least recently
    used row would lose almost every row before it is needed again.

    Args:
        compute: gives the states ``(row, token, hidden)`` of right-padded tokens ``(row, token)``.
        num_rows: rows of a batch.
        like: a tensor of the states' type and device, ``(0, hidden)``.
        executor: runs ``compute``.
        limit_bytes: memory that the kept states may take.
        ahead: rows by width that may fill up a batch that has to be computed anyway.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        *,
        num_rows: int,
        like: Tensor,
        executor: Executor,
        limit_bytes: int,
        ahead: Mapping[int, Iterator[TrunkRow]],
    ) -> None:
        self._compute, self._num_rows, self._executor = compute, num_rows, executor
        self._row_bytes = like.shape[1] * like.element_size()
        self._limit = FIRST + limit_bytes // self._row_bytes
        self._states = like.new_zeros(FIRST, like.shape[1])  # (position, hidden), all rows in line
        self._starts: dict[Hashable, int] = {}  # position of each kept row's first token
        self._used = FIRST  # positions from here on are free, or hold a single step's states
        self._ahead = ahead
        self._batches: dict[int, tuple[Staging, Callable[[], Tensor]]] = {}
        self._indices: dict[int, Staging] = {}

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def used_bytes(self) -> int:
        """Memory of the states that are kept."""
        return (self._used - FIRST) * self._row_bytes

    def prepare(self, width: int) -> None:
        """Compile and capture the program that computes rows of a width."""
        if width not in self._batches:
            shape = (self._num_rows, width)
            fields = {"tokens": (shape, torch.int64), "places": (shape, torch.int64)}
            staging = Staging(fields, self._states.device)
            run = self._executor.program(
                lambda: self._compute(staging.device["tokens"]),
                f"the states below the first part of {self._num_rows} x {width} tokens",
            )
            self._batches[width] = staging, run

    def write(self, rows: Sequence[TrunkRow | None], out: Tensor) -> None:
        """Write the states of a step's rows.

        Args:
            rows: ``num_rows``; ``None`` for a row without an example.
            out: ``(row, token, hidden)``; zeros behind a row's own width.
        """
        passing = self._compute_missing([row for row in rows if row is not None])
        width = out.shape[1]
        if width not in self._indices:
            fields = {"places": ((self._num_rows, width), torch.int64)}
            self._indices[width] = Staging(fields, out.device)
        staging = self._indices[width]
        self._fill_places(staging.host()["places"], rows, passing, empty=PADDING)
        staging.send()
        index = staging.device["places"].flatten()
        # `out` is the input of the step's captured program: it is filled in place, in stream order.
        torch.index_select(self._states, 0, index, out=out.flatten(0, 1))

    def _compute_missing(self, rows: Sequence[TrunkRow]) -> dict[Hashable, int]:
        """Compute states that are not kept.

        Returns:
            Where the states of rows begin that are there for this step only, by the row's key.
        """
        missing: dict[int, dict[Hashable, TrunkRow]] = {}
        for row in rows:
            if row.key not in self._starts:
                missing.setdefault(row.width, {})[row.key] = row
        batches = [
            b for width in sorted(missing) for b in self._fill_batches(missing[width].values())
        ]
        passing = self._find_places([row for batch in batches for row in batch])
        for batch in batches:
            self._compute_batch(batch, passing)
        return passing

    def _fill_batches(self, rows: Iterable[TrunkRow]) -> Iterator[list[TrunkRow]]:
        """Divide rows of one width into batches, and fill up the last.

        A batch costs the same however many of its rows are used, so free rows compute states that
        later steps will need.
        """
        waiting = iter(rows)
        while batch := list(islice(waiting, self._num_rows)):
            known = {row.key for row in batch}
            spare = self._ahead.get(batch[0].width, iter(()))
            while len(batch) < self._num_rows and (row := next(spare, None)) is not None:
                if row.key not in self._starts and row.key not in known:
                    batch.append(row)
            yield batch

    def _find_places(self, rows: Sequence[TrunkRow]) -> dict[Hashable, int]:
        """Give each row its positions in memory.

        Rows to keep get lasting positions while there is room. All others get positions behind
        them, which the next step writes over.

        Returns:
            Where the rows of the second kind begin, by their key.
        """
        self._make_room(self._used + sum(row.width for row in rows))
        left = []
        for row in rows:
            if row.lasting and self._used + row.width <= self._limit:
                self._starts[row.key] = self._used
                self._used += row.width
            else:
                left.append(row)
        passing, end = {}, self._used
        for row in left:
            passing[row.key] = end
            end += row.width
        return passing

    def _make_room(self, end: int) -> None:
        """Grow to at least ``end`` positions; if memory runs out, keep no further rows."""
        room = len(self._states)
        if end <= room:
            return
        try:
            # Twice as large, up to the limit, so that states are not copied again and again.
            self._grow(max(end, min(2 * room, self._limit)))
        except torch.OutOfMemoryError:
            self._limit = self._used  # from now on, new rows are there for one step only
            self._grow(end)

    def _grow(self, positions: int) -> None:
        before = self._states
        self._states = before.new_zeros(positions, before.shape[1])
        self._states[: len(before)] = before  # PADDING, DISCARDED and all rows so far

    def _compute_batch(self, batch: Sequence[TrunkRow], passing: Mapping[Hashable, int]) -> None:
        self.prepare(batch[0].width)
        staging, run = self._batches[batch[0].width]
        host = staging.host()
        host["tokens"].fill(0)
        for tokens, row in zip(host["tokens"], batch, strict=False):
            tokens[: len(row.tokens)] = row.tokens
        rows = [*batch, *[None] * (self._num_rows - len(batch))]
        self._fill_places(host["places"], rows, passing, empty=DISCARDED)
        staging.send()
        computed = run().flatten(0, 1)
        # Not a part of the captured program, which would keep the address of the tensor as it was
        # when recorded: growing moves it.
        self._states.index_copy_(0, staging.device["places"].flatten(), computed)

    def _fill_places(
        self,
        places: np.ndarray,
        rows: Sequence[TrunkRow | None],
        passing: Mapping[Hashable, int],
        *,
        empty: int,
    ) -> None:
        """Write the position of each token's states: ``(row, token)``.

        Args:
            places: to write into.
            rows: ``None`` for a row without an example.
            passing: where the rows begin that are there for this step only.
            empty: the position for what belongs to no row.
        """
        starts = [0 if row is None else self._start_of(row.key, passing) for row in rows]
        widths = [0 if row is None else row.width for row in rows]
        token = np.arange(places.shape[1])
        inside = token < np.array(widths)[:, None]
        places[:] = np.where(inside, np.array(starts)[:, None] + token, empty)

    def _start_of(self, key: Hashable, passing: Mapping[Hashable, int]) -> int:
        return self._starts[key] if key in self._starts else passing[key]
