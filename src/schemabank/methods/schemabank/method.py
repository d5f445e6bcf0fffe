"""The document's method: LoRA under routed schema banks, which come off at the end."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from schemabank.config.settings import RunConfig
from schemabank.engine.part import Attach
from schemabank.engine.stack import AdapterStack
from schemabank.methods.method import Method, Setup
from schemabank.methods.schemabank.attach import banks_for, banks_of
from schemabank.methods.schemabank.course import BANK, Banked
from schemabank.methods.schemabank.tagging import check_tags, embeddings, prefixes, tag_plan


class SchemaBankMethod(Method):
    """LoRA under schema banks."""

    def of_run(self, run: RunConfig, setup: Setup) -> Banked:
        """Return bank and tags; the tagger ``cluster`` reads the stack's base model."""
        stack, tokenizer, examples = setup.stack, setup.tokenizer, setup.examples
        tags = tag_plan(run, tokenizer, lambda: embeddings(stack, tokenizer, examples))
        return Banked(run.bank, tags)

    def settings(self, run: RunConfig) -> Mapping[str, object]:
        """Return the bank's settings."""
        return {BANK: run.bank}

    def attach(self, runs: Sequence[RunConfig]) -> Sequence[Attach]:
        """Return what puts banks of the largest rank and top k on a model."""
        bank = runs[0].bank.model_copy(update=dict(self.room(runs)))
        return [banks_for(bank, num_tags=runs[0].tags.num_tags)]

    def room(self, runs: Sequence[RunConfig]) -> Mapping[str, object]:
        """Return the largest rank and top k."""
        return {name: max(getattr(r.bank, name) for r in runs) for name in ("rank", "top_k")}

    def prefixes(
        self, run: RunConfig, tokenizer: PreTrainedTokenizerBase
    ) -> Sequence[Sequence[int]]:
        """Return the tokens of tag prefixes."""
        return prefixes(run, tokenizer)

    def check(self, run: RunConfig, setup: Setup) -> None:
        """Find what the tagger asks of examples that they do not have."""
        check_tags(run, setup.examples)

    def kept(self, stack: AdapterStack, slot: int) -> Mapping[str, Tensor]:
        """Return the bank's weights."""
        return banks_of(stack).tensors(slot)
