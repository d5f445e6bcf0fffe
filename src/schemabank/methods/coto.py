"""CoTo: a block's adapters act by chance, ever more often (arXiv 2506.05713).

In a step each block's adapters are left out with probability ``1 - p``, all of a block together and
never all blocks. ``p`` rises linearly to 1, from where on the run is plain LoRA. What is left out
has a gradient of zero. Nothing is scaled up for it, so the adapter at the end is what trained.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError
from schemabank.config.methods import CoToSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.loralayers import STRENGTH
from schemabank.engine.run import Course, OnCourse, Rows, Run, RunMethod, TrainingData
from schemabank.engine.schedule import StepSettings, keyed_uniform
from schemabank.methods.method import Method, Setup


class CoToCourse(Course):
    """Says for every step which blocks' adapters act.

    Args:
        run: the run.
        data: its training data.
        coto: how often blocks act.
        num_blocks: how many blocks have adapters.
    """

    def __init__(
        self, run: Run, data: TrainingData, *, coto: CoToSettings, num_blocks: int
    ) -> None:
        super().__init__(run, data)
        self._coto, self._num_blocks = coto, num_blocks
        self._drawn: tuple[int, npt.NDArray[np.bool_]] = (-1, np.zeros(0, dtype=bool))

    def values(self, at: StepSettings, rows: Rows) -> Mapping[str, npt.ArrayLike]:
        """Return 1 for a block whose adapters act in a step, and 0 for one whose do not."""
        del rows
        return {STRENGTH: self.acting(at.step).astype(float)}

    def logged(self, at: StepSettings) -> Mapping[str, float]:
        """Return the share of blocks whose adapters act."""
        return {"acting_blocks": float(self.acting(at.step).mean())}

    def acting(self, step: int) -> npt.NDArray[np.bool_]:
        """Return which blocks' adapters act in a step, ``(block,)``."""
        if self._drawn[0] != step:
            self._drawn = step, self._draw(step)
        return self._drawn[1]

    def probability(self, step: int) -> float:
        """Return the probability that a block's adapters act in a step."""
        first, rising = self._coto.initial_probability, self._coto.rising_ratio
        progress = step / max(1.0, rising * self.num_steps)
        return min(1.0, first + (1 - first) * progress) if rising else 1.0

    def _draw(self, step: int) -> npt.NDArray[np.bool_]:
        if self.probability(step) == 1:
            return np.ones(self._num_blocks, dtype=bool)
        seed, num_blocks = self.run.seed, self._num_blocks
        drawn = [keyed_uniform(f"coto/{seed}/{step}/{block}") for block in range(num_blocks)]
        acting = np.array(drawn) < self.probability(step)
        if not acting.any():
            acting[int(np.argmin(drawn))] = True
        return acting


class CoTo(Method):
    """LoRA whose adapters act by chance, ever more often."""

    def of_run(self, run: RunConfig, setup: Setup) -> RunMethod:
        """Return CoTo on the blocks of the stack's model that have adapters."""
        coto, num_blocks = run.own(CoToSettings), setup.stack.lora.num_blocks
        return OnCourse(partial(CoToCourse, coto=coto, num_blocks=num_blocks))

    def check(self, run: RunConfig, setup: Setup) -> None:
        """Refuse a single block with adapters: one always acts, so nothing is left out."""
        check_blocks(run, setup.stack.lora.num_blocks)


def check_blocks(run: RunConfig, num_blocks: int) -> None:
    """Refuse a single block with adapters.

    Raises:
        InputError: saying so.
    """
    if num_blocks < 2:
        raise InputError(
            f"arm is {run.arm!r}, but a single block has adapters, and they act in every step: "
            "allowed are two or more blocks, name them in lora.layers_to_transform or use the "
            "arm lora"
        )
