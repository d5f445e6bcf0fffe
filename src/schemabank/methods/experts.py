"""Experts that fold: several maps B over one A, one of them used at a time (AdaMix, 2205.12410).

The adapter of a layer is ``B_k A`` with an expert ``k`` that is drawn for every step and layer, or
given by a hash of the example. At the end the maps are replaced by their mean, which is exactly the
mixture of all experts with equal shares: a plain LoRA adapter of the same rank. Drawing is the
control for every cleverer choice (THOR, 2110.04260; Hash Layers, 2106.04426).

An expert that a step does not use has a gradient of zero there, with which AdamW goes on: its
moments fade, and until they have it still moves. PyTorch's AdamW would skip a weight without any.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from schemabank.config.methods import ExpertsSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.loralayers import MIX
from schemabank.engine.run import Course, OnCourse, Rows, Run, RunMethod, TrainingData
from schemabank.engine.schedule import StepSettings
from schemabank.engine.stack import MAPS, AdapterStack
from schemabank.methods.method import Method
from schemabank.tasks import Example


class ExpertsCourse(Course):
    """Says for every step which expert each row uses in each layer.

    Args:
        run: the run.
        data: its training data.
        experts: how many there are, and which is used.
        num_layers: how many layers have adapters.
        room: how many maps those have room for; another run may use more than this one.
    """

    def __init__(
        self,
        run: Run,
        data: TrainingData,
        *,
        experts: ExpertsSettings,
        num_layers: int,
        room: int,
    ) -> None:
        super().__init__(run, data)
        self._experts, self._num_layers, self._room = experts, num_layers, room
        self._of_examples: dict[int, npt.NDArray[np.int64]] = {}

    def values(self, at: StepSettings, rows: Rows) -> Mapping[str, npt.ArrayLike]:
        """Return 1 for the expert that a row uses in a layer, and 0 for the others."""
        every = np.eye(self._room)
        if self._experts.routing == "random":
            mix = every[self._drawn(f"{self.run.seed}/{at.step}")]
            return {MIX: np.broadcast_to(mix, (len(rows), *mix.shape))}
        none = np.zeros(self._num_layers, dtype=np.int64)
        found = [none if row is None else self._of_example(row.index) for row in rows]
        return {MIX: every[np.stack(found)]}

    def _of_example(self, index: int) -> npt.NDArray[np.int64]:
        """The expert of every layer for an example, whatever run and step."""
        if index not in self._of_examples:
            self._of_examples[index] = self._drawn(self.data.examples[index].id)
        return self._of_examples[index]

    def _drawn(self, key: str) -> npt.NDArray[np.int64]:
        """An expert for every layer, ``(layer,)``, from a key alone."""
        digest = hashlib.sha256(f"experts/{key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return rng.integers(self._experts.num_experts, size=self._num_layers)


class Experts(Method):
    """LoRA with several maps B over one A."""

    def of_run(
        self,
        run: RunConfig,
        examples: Sequence[Example],
        stack: AdapterStack,
        tokenizer: PreTrainedTokenizerBase,
    ) -> RunMethod:
        """Return experts in all layers with adapters."""
        del examples, tokenizer
        course = partial(
            ExpertsCourse,
            experts=run.own(ExpertsSettings),
            num_layers=len(stack.lora.layers),
            room=stack.lora.most_maps,
        )
        return OnCourse(course, self.settings(run))

    def settings(self, run: RunConfig) -> Mapping[str, object]:
        """Return the number of maps."""
        return {MAPS: self.num_maps(run)}

    def num_maps(self, run: RunConfig) -> int:
        """Return the number of experts."""
        return run.own(ExpertsSettings).num_experts
