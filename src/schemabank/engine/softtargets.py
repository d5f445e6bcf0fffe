"""What a run learns at each label when it learns from others: a few tokens, and the share of each.

Hard labels say that one token is right and all others are wrong. Soft targets (arXiv 1503.02531)
say how likely each is. They are sparse here, since of a vocabulary only a few tokens ever are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

TOKENS, SHARES = "soft_tokens", "soft_shares"  # names in a step's input


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """Soft targets for every label of a run's examples.

    Attributes:
        tokens: ``(label, k)``, int32; the label itself comes first, and no token comes twice.
        shares: ``(label, k)``, float32; those of a label sum to 1.
        starts: ``(example + 1,)``, where the labels of each example begin.
    """

    tokens: npt.NDArray[np.int32]
    shares: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]

    @property
    def width(self) -> int:
        """How many tokens each label has."""
        return int(self.tokens.shape[1])

    def write(
        self, host: Mapping[str, np.ndarray], slot: int, examples: Sequence[int | None]
    ) -> None:
        """Write the targets of a slot's examples into arrays of ``(slot, batch, label, k)``."""
        for at, index in enumerate(examples):
            if index is not None:
                start, stop = self.starts[index : index + 2]
                host[TOKENS][slot, at, : stop - start] = self.tokens[start:stop]
                host[SHARES][slot, at, : stop - start] = self.shares[start:stop]


def soft_shapes(
    leading: tuple[int, int], *, num_labels: int, width: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and type of a step's soft targets; none of width 0."""
    shape = (*leading, num_labels, width)
    return {TOKENS: (shape, torch.int32), SHARES: (shape, torch.float32)} if width else {}


def label_starts(num_labels: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return where the labels of each example begin, ``(example + 1,)``."""
    return np.concatenate([[0], np.cumsum(num_labels)]).astype(np.int64)
