"""The base model's states below the first part, computed once an example and kept.

While LoRA is untouched, all runs have the same ones: in the document's first stage only the rest of
the model has to run again.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from schemabank.engine.execute import Executor, Staging

PADDING, DISCARDED = 0, 1  # positions without a row's states: zeros to read, anything to write
FIRST = 2


@dataclass(frozen=True)
class TrunkRow:
    """A row whose states are wanted.

    Attributes:
        key: tells it from all other rows.
        tokens: token ids, at most ``width``.
        width: tokens a row of the batch in which it is computed. It is the row's own, whatever
            step asks, so that its states have the same bits in all steps.
        lasting: whether another step is likely to ask for it.
    """

    key: Hashable
    tokens: Sequence[int]
    width: int
    lasting: bool = True


class TrunkStates:
    """Computes and keeps states up to a limit; what no longer fits is computed again each time.

    Nothing is evicted: every epoch asks for every row once, which is where eviction of the least
    recently used keeps nothing at all.

    Args:
        compute: gives the states ``(row, token, hidden)`` of right-padded tokens ``(row, token)``.
        num_rows: rows of a batch.
        like: of the states' type and device, ``(0, hidden)``.
        executor: runs ``compute``.
        limit_bytes: memory that the kept states may take.
        ahead: rows by width that may fill up a batch which has to be computed anyway.
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
        self._starts: dict[Hashable, int] = {}
        self._used = FIRST
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
        """Compile and capture what computes rows of a width."""
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
        torch.index_select(self._states, 0, index, out=out.flatten(0, 1))

    def _compute_missing(self, rows: Sequence[TrunkRow]) -> dict[Hashable, int]:
        """Compute what is not kept; return where those states lie that last for this step alone."""
        missing: dict[int, dict[Hashable, TrunkRow]] = {}
        for row in rows:
            if row.key not in self._starts:
                missing.setdefault(row.width, {})[row.key] = row
        batches = [b for width in sorted(missing) for b in self._batched(missing[width].values())]
        passing = self._find_places([row for batch in batches for row in batch])
        for batch in batches:
            self._run(batch, passing)
        return passing

    def _batched(self, rows: Iterable[TrunkRow]) -> Iterator[list[TrunkRow]]:
        """Divide rows of one width into batches, and fill up the last."""
        waiting = iter(rows)
        while batch := list(islice(waiting, self._num_rows)):
            known = {row.key for row in batch}
            spare = self._ahead.get(batch[0].width, iter(()))
            while len(batch) < self._num_rows and (row := next(spare, None)) is not None:
                if row.key not in self._starts and row.key not in known:
                    batch.append(row)
            yield batch

    def _find_places(self, rows: Sequence[TrunkRow]) -> dict[Hashable, int]:
        """Give rows to keep a place for ever, as far as there is room, and others one behind."""
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
        """Grow as far as ``end``; where memory runs out, keep no more rows than by now."""
        room = len(self._states)
        if end <= room:
            return
        try:
            self._grow(max(end, min(2 * room, self._limit)))
        except torch.OutOfMemoryError:
            self._limit = self._used
            self._grow(end)

    def _grow(self, positions: int) -> None:
        before = self._states
        self._states = before.new_zeros(positions, before.shape[1])
        self._states[: len(before)] = before

    def _run(self, batch: Sequence[TrunkRow], passing: Mapping[Hashable, int]) -> None:
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
        self._states.index_copy_(0, staging.device["places"].flatten(), computed)

    def _fill_places(
        self,
        places: np.ndarray,
        rows: Sequence[TrunkRow | None],
        passing: Mapping[Hashable, int],
        *,
        empty: int,
    ) -> None:
        """Write where the states of every row's tokens lie: ``(row, token)``."""
        starts = [0 if row is None else self._start(row.key, passing) for row in rows]
        widths = [0 if row is None else row.width for row in rows]
        token = np.arange(places.shape[1])
        inside = token < np.array(widths)[:, None]
        places[:] = np.where(inside, np.array(starts)[:, None] + token, empty)

    def _start(self, key: Hashable, passing: Mapping[Hashable, int]) -> int:
        return self._starts[key] if key in self._starts else passing[key]
