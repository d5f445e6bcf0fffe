"""The base model's states below the first bank, computed once an example and kept.

While LoRA is untouched, all runs have the same ones: in the document's first stage only the rest of
the model has to run again.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class TrunkCache:
    """States of single rows, up to a limit; what no longer fits is computed again each time.

    Nothing is evicted: every epoch asks for every row once, which is where eviction of the least
    recently used keeps nothing at all.

    Args:
        limit_bytes: memory that the states may take.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._rows: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def states(
        self, keys: Sequence[Hashable | None], compute: Callable[[], Tensor], out: Tensor
    ) -> None:
        """Write the states of a batch's rows to ``out``: ``(row, token, hidden)``.

        Args:
            keys: one a row, which tells it from all other rows of any shape; ``None`` for a row
                without an example, whose states do not matter.
            compute: gives the states of all rows, shaped like ``out``.
            out: where they go.
        """
        missing = [row for row, key in enumerate(keys) if key is not None and key not in self._rows]
        if missing:
            computed = compute()
            self._keep({keys[row]: row for row in missing}, computed)
            rows = {row: computed[row] for row in missing}
        else:
            rows = {}
        rows |= {row: self._rows[key] for row, key in enumerate(keys) if key in self._rows}
        if rows:
            filler = next(iter(rows.values()))
            torch.stack([rows.get(row, filler) for row in range(len(keys))], out=out)

    def _keep(self, rows: dict[Hashable, int], computed: Tensor) -> None:
        """Keep as many of the new rows as the limit allows, in memory of their own."""
        size = computed[0].numel() * computed.element_size()
        fitting = list(rows.items())[: max(0, self.limit_bytes - self.used_bytes) // size]
        if not fitting:
            return
        index = torch.tensor([row for _, row in fitting], device=computed.device)
        kept = computed.index_select(0, index)
        self._rows |= {key: kept[i] for i, (key, _) in enumerate(fitting)}
        self.used_bytes += len(fitting) * size
