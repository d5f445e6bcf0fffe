"""How a run tags its examples: which tagger, when, and as what."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from schemabank.common.errors import InputError
from schemabank.config.settings import BankSettings, RunConfig, TagSettings
from schemabank.engine.batches import Encoded, collate
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.course import TagPlan
from schemabank.methods.schemabank.tags import (
    Tagger,
    cluster_tagger,
    content_tagger,
    field_tagger,
    hash_tagger,
    prefix_text,
    random_tagger,
)
from schemabank.tasks import Example
from schemabank.tasks.seams import beginning_tokens, leading_tokens, plain_tokens

Embed = Callable[[], Mapping[str, np.ndarray]]
EMBEDDING_BATCH = 16


def tag_plan(run: RunConfig, tokenizer: PreTrainedTokenizerBase, embed: Embed) -> TagPlan | None:
    """Return how a run's examples are tagged; ``None`` for a run without tags."""
    if not run.is_tagged:
        return None
    return TagPlan(
        tagger=make_tagger(run.tags, run.bank, run.seed, embed),
        num_tags=run.tags.num_tags,
        prefix_room=max(map(len, prefixes(run, tokenizer)), default=0),
        loss_weight=run.tags.loss_weight if run.tags.delivery in {"loss", "both"} else 0.0,
        fixed=run.tags.tagger != "random",
    )


def uses_prefix(run: RunConfig) -> bool:
    """Whether a run puts tags in front of its prompts."""
    return run.is_tagged and run.tags.delivery in {"prefix", "both"}


def check_tags(run: RunConfig, examples: Sequence[Example]) -> None:
    """Check what the tagger needs of the examples, such as a field, before anything is computed.

    Raises:
        InputError: the tagger cannot tag these examples.
    """
    if not run.is_tagged:
        return
    if run.tags.tagger == "cluster":
        num_questions = len({example.question for example in examples})
        if num_questions < run.bank.num_schemas:
            raise InputError(
                f"bank.num_schemas is {run.bank.num_schemas}, but tags.tagger 'cluster' allows 1 "
                f"to {num_questions}, the number of distinct training questions: lower it"
            )
        return
    tagger = make_tagger(run.tags, run.bank, run.seed, dict)  # no other tagger needs embeddings
    tagger(examples[0], rng=np.random.default_rng(0))


def make_tagger(tags: TagSettings, bank: BankSettings, seed: int, embed: Embed) -> Tagger:
    """Return the tagger that the settings name; ``embed`` is called for ``cluster`` only."""
    sizes = {"num_schemas": bank.num_schemas, "num_tags": tags.num_tags}
    makers: dict[str, Callable[[], Tagger]] = {
        "hash": lambda: hash_tagger(**sizes),
        "content": lambda: content_tagger(**sizes),
        "field": lambda: field_tagger(field=str(tags.field), **sizes),
        "random": lambda: random_tagger(**sizes),
        "cluster": lambda: cluster_tagger(embed(), seed=seed, **sizes),
    }
    return makers[tags.tagger]()


def embeddings(
    stack: AdapterStack, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> dict[str, np.ndarray]:
    """Return the mean final hidden state of each question, by example id.

    These are the base model's states, whatever its adapters have come to.
    """
    found: dict[str, np.ndarray] = {}
    beginning = beginning_tokens(tokenizer)
    with stack.evaluating("off"), stack.lora.absent():
        for start in range(0, len(examples), EMBEDDING_BATCH):
            chosen = examples[start : start + EMBEDDING_BATCH]
            encoded = [
                Encoded(
                    id=e.id,
                    tokens=(*beginning, *plain_tokens(e.question, tokenizer)),
                    label_start=1,
                )
                for e in chosen
            ]
            width = max(len(e.tokens) for e in encoded)
            # A stack runs all slots, which are the same model here: the first slot's rows are kept.
            batch = collate([encoded] * stack.num_slots, width=width, num_labels=width)
            batch = batch.to(stack.model.device)
            hidden = stack.hidden(batch.tokens)[: len(chosen)].float()
            real = batch.real[0][..., None]
            pooled = (hidden * real).sum(1) / real.sum(1)
            found |= dict(zip((e.id for e in chosen), pooled.cpu().numpy(), strict=True))
    return found


def prefixes(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of tag prefixes, among them the longest; none for a run without them."""
    if not uses_prefix(run):
        return []
    texts = [prefix_text((i,) * run.tags.num_tags) for i in range(run.bank.num_schemas)]
    return [leading_tokens(text, tokenizer) for text in texts]
