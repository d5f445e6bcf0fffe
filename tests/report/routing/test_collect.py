import numpy as np
import pytest
import torch

from cohorts import with_banks
from schemabank.config.settings import BankSettings, LoraSettings
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.report.routing.collect import collect, tokens_of
from schemabank.tasks import Item
from tiny import tiny_model
from tinyruns import Notes

BANK = BankSettings(num_schemas=6, rank=2, top_k=2, last_n=2, attribute_dim=4, init_std=0.5)
SEQUENCES = [
    (tuple(range(5, 5 + prompt)), tuple(range(50, 50 + target)))
    for prompt, target in ((4, 3), (1, 1), (9, 2), (30, 6), (2, 5), (3, 3), (7, 1), (4, 4), (8, 3))
]
ITEMS = [
    Item(
        id=f"item-{number}",
        group="all",
        prompt="",
        prompt_tokens=prompt,
        target_tokens=target,
        golds=("1",),
    )
    for number, (prompt, target) in enumerate(SEQUENCES)
]


def test_tokens_stand_one_example_after_another_without_the_last_one() -> None:
    found = tokens_of(ITEMS[:2])
    assert found.ids.tolist() == [5, 6, 7, 8, 50, 51, 5]
    assert found.example_of.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert found.answers.tolist() == [False, False, False, True, False, False, True]
    assert found.in_target.tolist() == [False] * 4 + [True] * 2 + [False]


def test_choices_are_those_of_every_example_by_itself() -> None:
    model = tiny_model("llama")
    expected = []
    for prompt, target in SEQUENCES:
        tokens = torch.tensor([[*prompt, *target[:-1]]])
        with torch.no_grad():
            states = model(tokens, output_hidden_states=True).hidden_states
        expected.append(states[2][0])  # the output of block 1, the first with a bank
    stack = AdapterStack(model, lora=[LoraSettings(r=2)], attach=with_banks(BANK))
    stack.initialise(0, 7)
    found = collect(stack, ITEMS, Notes())
    assert list(found) == [1, 2]
    router = banks_of(stack).banks[1].router[0]
    log_probs = (torch.cat(expected) @ router.T).log_softmax(-1)
    probs = log_probs.exp()
    np.testing.assert_allclose(found[1].probability, probs.mean(0).detach().numpy(), atol=2e-5)
    entropy = -(probs * log_probs).sum(1).mean()
    assert found[1].entropy == pytest.approx(entropy.item(), abs=2e-5)
    top = log_probs.topk(2).indices
    shares = torch.zeros_like(log_probs).scatter(-1, top, 0.5)
    assert np.array_equal(found[1].shares, shares.numpy())
    assert not np.array_equal(found[1].shares, found[2].shares)
    assert banks_of(stack).routing == "off"


def test_progress_counts_every_example() -> None:
    stack = AdapterStack(tiny_model("llama"), lora=[LoraSettings(r=2)], attach=with_banks(BANK))
    stack.initialise(0, 7)
    notes = Notes()
    collect(stack, ITEMS, notes)
    assert notes.done == len(ITEMS)
