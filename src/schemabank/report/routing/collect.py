"""What the routers of one adapter choose, token by token, on a task's examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemabank.common.waiting import waiting
from schemabank.engine.batches import Batch, Encoded, collate
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.report.routing.measures import Floats, Ints
from schemabank.runs.progress import Reporter
from schemabank.tasks import Item

BATCH_ROWS = 8
BATCH_TOKENS = 8192

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Tokens:
    """The tokens of the examples, those of one example after those of another.

    Attributes:
        ids: ``(token,)``.
        example_of: ``(token,)``, index of the example.
        answers: ``(token,)``, whether it is the prompt's last, which answers the question.
        in_target: ``(token,)``, whether it is of the gold target.
    """

    ids: Ints
    example_of: Ints
    answers: Bools
    in_target: Bools


@dataclass(frozen=True)
class Choices:
    """What a router did.

    Attributes:
        shares: ``(token, schema)``, ``1 / top_k`` where the schema is chosen, else 0.
        probability: ``(schema,)``, the mean of its softmax over all tokens.
        entropy: of a token's softmax, on average.
    """

    shares: Floats
    probability: Floats
    entropy: float


def tokens_of(items: Sequence[Item]) -> Tokens:
    """Lay prompts and gold targets out as one sequence; a target's last token is never routed."""
    lengths = [(len(i.prompt_tokens), len(i.target_tokens) - 1) for i in items]
    places = [np.arange(-prompt, target) for prompt, target in lengths]
    place = np.concatenate(places)
    return Tokens(
        ids=np.array([token for item in items for token in _routed_tokens(item)]),
        example_of=np.repeat(np.arange(len(items)), [len(p) for p in places]),
        answers=place == -1,
        in_target=place >= 0,
    )


def collect(stack: AdapterStack, items: Sequence[Item], reporter: Reporter) -> dict[int, Choices]:
    """Route prompts and gold targets with the bank on at full scale, without dropout.

    Args:
        stack: one slot, with a bank.
        items: the examples.
        reporter: told how many examples are done.

    Returns:
        Choices by the index of the bank's layer; tokens are in the order of :func:`tokens_of`.
    """
    assert stack.num_slots == 1
    banks = banks_of(stack)
    layers = list(banks.banks)
    shares: dict[int, list[Floats]] = {index: [] for index in layers}
    sums = {index: np.zeros(bank.num_schemas + 1) for index, bank in banks.banks.items()}
    with waiting("routing examples", reporter.note) as wait, stack.evaluating("on"):
        for batch in _batches(items):
            moved = batch.to(stack.model.device)
            stack.hidden(moved.tokens)
            real = moved.real[0].bool()
            for index, routed in zip(layers, banks.routed, strict=True):
                chosen = (routed.gates[0][real] > 0).float()
                shares[index].append((chosen / chosen.sum(-1, keepdim=True)).cpu().numpy())
                sums[index] += _probability_and_entropy(routed.log_probs[0][real].double())
            banks.routed.clear()
            wait.goes_on()
            reporter.advance(batch.tokens.shape[1], "")
    choices = {}
    for index in layers:
        whole = np.concatenate(shares.pop(index))
        *probability, entropy = sums[index] / len(whole)
        choices[index] = Choices(whole, np.array(probability), float(entropy))
    return choices


def _probability_and_entropy(log_probs: Tensor) -> Floats:
    """Each schema's probability and, last, the entropy, summed over tokens."""
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum()
    found: Floats = torch.cat([probs.sum(0), entropy[None]]).cpu().numpy()
    return found


def _routed_tokens(item: Item) -> tuple[int, ...]:
    return (*item.prompt_tokens, *item.target_tokens[:-1])


def _batches(items: Sequence[Item]) -> Iterator[Batch]:
    """Examples in their order, a few at a time."""
    rows: list[Encoded] = []
    for item in items:
        row = Encoded(id=item.id, tokens=_routed_tokens(item), label_start=1)
        width = max(len(r.tokens) for r in (*rows, row))
        if len(rows) == BATCH_ROWS or (rows and width * (len(rows) + 1) > BATCH_TOKENS):
            yield _collated(rows)
            rows = []
        rows.append(row)
    yield _collated(rows)


def _collated(rows: Sequence[Encoded]) -> Batch:
    width = max(len(row.tokens) for row in rows)
    return collate([rows], width=width, num_labels=width)
