"""Shrink: an adapter that begins with a higher rank and is reduced to its own on the way.

The wide adapter has the scale of the narrow one. Before the step at ``ratio`` of all, the nearest
adapter of the rank ``lora.r`` takes its place, by the singular value decomposition. From there on
the run is plain LoRA with a fresh optimizer, whose learning rate warms up again and goes on along
the run's own schedule. So the run ends as a plain adapter, and what it ends with was trained as
such. A mean over the steps is that of the steps from there on, as if the run began there.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from schemabank.common.errors import InputError
from schemabank.config.methods import ShrinkSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.run import Course, OnCourse, Run, RunMethod, TrainingData
from schemabank.engine.schedule import StepSettings
from schemabank.engine.stack import RANK
from schemabank.methods.method import Method, Setup


class ShrinkCourse(Course):
    """Says when the adapter is reduced.

    Args:
        run: the run.
        data: its training data.
        ratio: share of the steps that the wide adapter takes.
    """

    def __init__(self, run: Run, data: TrainingData, *, ratio: float) -> None:
        super().__init__(run, data)
        self.reduced_at: int = max(1, round(ratio * self.num_steps))
        self._warm_up: int = math.ceil(run.train.warmup_ratio * self.num_steps)

    def step(self, number: int) -> StepSettings:
        """Return a step's settings; the reduced adapter's optimizer begins anew."""
        found, since = super().step(number), number - self.reduced_at
        rises = 0 <= since < self._warm_up
        share = (since + 1) / (self._warm_up + 1) if rises else 1
        return replace(
            found, first=found.first or since == 0, learning_rate=found.learning_rate * share
        )


class Shrink(Method):
    """LoRA that begins with a higher rank."""

    def of_run(self, run: RunConfig, setup: Setup) -> RunMethod:
        """Return the course, with the rank at the beginning."""
        del setup
        ratio = run.own(ShrinkSettings).ratio
        return OnCourse(partial(ShrinkCourse, ratio=ratio), self.settings(run))

    def check(self, run: RunConfig, setup: Setup) -> None:
        """Refuse BEMA, which adds what a run has come away from its first weights."""
        del setup
        if run.average.kind == "bema":
            raise InputError(
                f"average.kind is 'bema', but the first weights of the arm {run.arm} have another "
                "rank than its last: allowed are 'none', 'last' and 'exponential', set one of these"
            )

    def settings(self, run: RunConfig) -> Mapping[str, object]:
        """Return the rank at the beginning."""
        return {RANK: self.rank(run)}

    def rank(self, run: RunConfig) -> int:
        """Return the rank at the beginning."""
        return run.lora.r * run.own(ShrinkSettings).factor
