"""What a method is to everything above the engine. This base class is plain LoRA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from schemabank.config.settings import RunConfig
from schemabank.engine.lora import ONE_MAP, Maps
from schemabank.engine.part import Attach
from schemabank.engine.run import OnCourse, RunMethod
from schemabank.engine.stack import AdapterStack
from schemabank.tasks import Example


@dataclass(frozen=True)
class Setup:
    """What a method may look at before a run trains.

    Attributes:
        examples: what the run is trained on.
        stack: on the untouched base model.
        tokenizer: the base model's.
    """

    examples: Sequence[Example]
    stack: AdapterStack
    tokenizer: PreTrainedTokenizerBase


class Method:
    """Plain LoRA; other methods refine it."""

    def of_run(self, run: RunConfig, setup: Setup) -> RunMethod:
        """Return what a run trains, as the engine takes it."""
        del run, setup
        return OnCourse()

    def settings(self, run: RunConfig) -> Mapping[str, object]:
        """Return a run's settings of the parts that :meth:`attach` puts on a model."""
        del run
        return {}

    def attach(self, runs: Sequence[RunConfig]) -> Sequence[Attach]:
        """Return what puts the method's own parts on a model, with room for any of these runs."""
        del runs
        return ()

    def room(self, runs: Sequence[RunConfig]) -> Mapping[str, object]:
        """Return what decides how much room :meth:`attach` makes, as JSON has it.

        A run in training goes on beside other runs than before if it has the same room among them.
        Without it, only beside the same runs. What all runs of a cohort share need not be said.
        """
        del runs
        return {}

    def maps(self, run: RunConfig) -> Maps:
        """Return the B's that a layer's adapter has over one A while a run trains."""
        del run
        return ONE_MAP

    def rank(self, run: RunConfig) -> int:
        """Return the rank with which a run begins."""
        return run.lora.r

    def prefixes(
        self, run: RunConfig, tokenizer: PreTrainedTokenizerBase
    ) -> Sequence[Sequence[int]]:
        """Return the tokens that may stand in front of an example, the longest among them."""
        del run, tokenizer
        return ()

    def check(self, run: RunConfig, setup: Setup) -> None:
        """Find what a run asks of its examples or model that they do not have.

        Raises:
            InputError: naming it.
        """

    def kept(self, stack: AdapterStack, slot: int) -> Mapping[str, Tensor]:
        """Return the weights of the section ``bank``, which a run keeps beside its adapter."""
        del stack, slot
        return {}
