"""Experts that fold: several maps B over one A, replaced by their mean at the end (AdaMix).

The adapter of a layer is ``B_k A`` with an expert ``k`` that is drawn for every step and layer
(AdaMix, arXiv 2205.12410), or given by a hash of the example. Or it is ``Σ_k g_k B_k A`` with
shares ``g`` that a router gives each token (HydraLoRA, 2404.19245); they fade to equal ones while
the run trains. At the end the maps are replaced by their mean, which is exactly the mixture of all
experts with equal shares: a plain LoRA adapter of the same rank. Drawing is the control for every
cleverer choice (THOR, 2110.04260; Hash Layers, 2106.04426).

A consistency weight adds the difference between the predictions of two passes over a batch to the
loss. The passes have other dropout masks and, unless routing is learned, other experts. A second
pass doubles a step's cost.

An expert that a step does not use has a gradient of zero there, with which AdamW goes on: its
moments fade, and until they have it still moves. PyTorch's AdamW would skip a weight without any.
"""

import hashlib
import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError
from schemabank.config.methods import ExpertsSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.lora import Maps
from schemabank.engine.loralayers import MIX, NEXT_MIX, ROUTED
from schemabank.engine.run import Course, OnCourse, Rows, Run, RunMethod, TrainingData
from schemabank.engine.schedule import StepSettings
from schemabank.engine.stack import MAPS
from schemabank.methods.method import Method, Setup


class ExpertsCourse(Course):
    """Says for every step how much each row uses of each expert in each layer.

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
        self._of_examples: dict[str, npt.NDArray[np.int64]] = {}

    def values(self, at: StepSettings, rows: Rows) -> Mapping[str, npt.ArrayLike]:
        """Return the shares of all experts for every row of a step, in each of its passes."""
        found: dict[str, npt.ArrayLike] = {MIX: self._mix(at, rows, "")}
        if self._is_learned:
            found[ROUTED] = self.routed_share(at.step)
        if self.run.passes == 2:
            found[NEXT_MIX] = self._mix(at, rows, "/again")
            found["consistency_weight"] = self._experts.consistency_weight
        return found

    def logged(self, at: StepSettings) -> Mapping[str, float]:
        """Return how much the routers count, where there are any."""
        return {"routed_share": self.routed_share(at.step)} if self._is_learned else {}

    def routed_share(self, step: int) -> float:
        """Return how much the routers count in a step; the rest is shared equally."""
        return max(0.0, 1 - (step + 1) / (self._experts.annealing_ratio * self.num_steps))

    @property
    def _is_learned(self) -> bool:
        return self._experts.routing == "learned"

    def _mix(self, at: StepSettings, rows: Rows, name: str) -> npt.NDArray[np.float64]:
        """Shares of the experts, ``(row, layer, map)``, beside those that routers give."""
        size = (len(rows), self._num_layers, self._room)
        if self._is_learned:
            equal = np.zeros(size)
            share = (1 - self.routed_share(at.step)) / self._experts.num_experts
            equal[..., : self._experts.num_experts] = share
            return equal
        every = np.eye(self._room)
        if self._experts.routing == "random":
            drawn = self._drawn(f"{self.run.seed}/{at.step}{name}")
            return np.broadcast_to(every[drawn], size)
        none = np.zeros(self._num_layers, dtype=np.int64)
        found = [none if row is None else self._of_example(row.index, name) for row in rows]
        return every[np.stack(found)]

    def _of_example(self, index: int, name: str) -> npt.NDArray[np.int64]:
        """The expert of every layer for an example, whatever run and step."""
        key = f"{self.data.examples[index].id}{name}"
        if key not in self._of_examples:
            self._of_examples[key] = self._drawn(key)
        return self._of_examples[key]

    def _drawn(self, key: str) -> npt.NDArray[np.int64]:
        """An expert for every layer, ``(layer,)``, from a key alone."""
        digest = hashlib.sha256(f"experts/{key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return rng.integers(self._experts.num_experts, size=self._num_layers)


class Experts(Method):
    """LoRA with several maps B over one A."""

    def of_run(self, run: RunConfig, setup: Setup) -> RunMethod:
        """Return experts in all layers with adapters."""
        lora = setup.stack.lora
        course = partial(
            ExpertsCourse,
            experts=run.own(ExpertsSettings),
            num_layers=len(lora.layers),
            room=lora.room.count,
        )
        return OnCourse(course, self.settings(run))

    def check(self, run: RunConfig, setup: Setup) -> None:
        """Refuse two passes that nothing tells apart, and routers that would never count."""
        epoch = math.ceil(len(setup.examples) / run.train.batch_size)
        check_fading(run, run.train.max_steps or run.train.num_train_epochs * epoch)
        check_passes(run)

    def settings(self, run: RunConfig) -> Mapping[str, object]:
        """Return the maps."""
        return {MAPS: self.maps(run)}

    def maps(self, run: RunConfig) -> Maps:
        """Return a map an expert."""
        experts = run.own(ExpertsSettings)
        return Maps(
            count=experts.num_experts,
            routed=experts.routing == "learned",
        )


def check_fading(run: RunConfig, num_steps: int) -> None:
    """Refuse routers that would never count.

    Raises:
        InputError: naming the share of the steps in which they fade.
    """
    experts = run.own(ExpertsSettings)
    if experts.routing == "learned" and experts.annealing_ratio * num_steps <= 1:
        raise InputError(
            f"experts.annealing_ratio is {experts.annealing_ratio:g} of {num_steps} steps, but "
            "learned routing fades within the first step then: allowed is a share of more than "
            "one step, raise it, train longer, or set experts.routing to random"
        )


def check_passes(run: RunConfig) -> None:
    """Refuse two passes that nothing tells apart.

    Raises:
        InputError: naming the weight of their difference.
    """
    experts = run.own(ExpertsSettings)
    drawn = experts.routing != "learned" or run.lora.lora_dropout > 0
    if experts.consistency_weight > 0 and not drawn:
        raise InputError(
            f"experts.consistency_weight is {experts.consistency_weight:g}, but with learned "
            "routing and lora.lora_dropout 0 both passes over a batch are the same: set it to "
            "0, raise lora.lora_dropout, or set experts.routing to random or hash"
        )
