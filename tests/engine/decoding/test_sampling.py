"""Drawing tokens: the right distribution, and nothing but key and position matters."""

import pytest
import torch
from scipy.stats import chisquare

from cohorts import BANK, with_banks
from schemabank.config.settings import LoraSettings
from schemabank.engine.decoding.completion import Completion
from schemabank.engine.decoding.decode import generate
from schemabank.engine.decoding.sampling import Sampling, draw, sample_keys
from schemabank.engine.stack import AdapterStack
from tiny import END_TOKEN_ID, tiny_model

NUM_DRAWS = 40_000
PROMPTS = [[5, 9, 3 + i % 4, *range(1, 1 + i % 3)] for i in range(12)]


def drawn(logits: torch.Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    keys = torch.tensor(sample_keys(0, [("item", i) for i in range(NUM_DRAWS)]), dtype=torch.int32)
    rows = logits.expand(NUM_DRAWS, -1)
    how = Sampling(keys=(), temperature=temperature, top_p=top_p)
    return draw(rows, how, keys=keys, positions=torch.full((NUM_DRAWS,), 7))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 2.0])
    counts = drawn(logits, temperature=temperature).bincount(minlength=6)
    expected = (logits / temperature).softmax(-1) * NUM_DRAWS
    assert chisquare(counts.numpy(), expected.double().numpy(), sum_check=False).pvalue > 1e-4


def test_neither_positions_nor_keys_repeat_a_draw() -> None:
    """Along the positions of one key, the same distribution; two keys agree as chance says."""
    logits = torch.zeros(NUM_DRAWS, 8)
    positions = torch.arange(NUM_DRAWS)
    rows = [
        draw(
            logits,
            Sampling(keys=(), temperature=1.0),
            keys=torch.full((NUM_DRAWS,), key, dtype=torch.int32),
            positions=positions,
        )
        for key in sample_keys(0, [("a", 0), ("a", 1), ("b", 0)])
    ]
    for row in rows:
        assert chisquare(row.bincount(minlength=8).numpy()).pvalue > 1e-4
        pairs = (row[1:] * 8 + row[:-1]).bincount(minlength=64)
        assert chisquare(pairs.numpy()).pvalue > 1e-4
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (rows[one] == rows[other]).double().mean().item() == pytest.approx(1 / 8, abs=0.01)


def test_the_nucleus_is_the_fewest_tokens_that_reach_its_probability() -> None:
    logits = torch.tensor([0.4, 0.05, 0.3, 0.2, 0.05]).log()
    nuclei = {0.1: {0}, 0.41: {0, 2}, 0.69: {0, 2}, 0.71: {0, 2, 3}, 1.0: set(range(5))}
    for top_p, kept in nuclei.items():
        found = drawn(logits, top_p=top_p)
        assert set(found.unique().tolist()) == kept
    counts = drawn(logits, top_p=0.69).bincount(minlength=5)[[0, 2]]
    assert chisquare(counts.numpy(), [NUM_DRAWS * 4 / 7, NUM_DRAWS * 3 / 7]).pvalue > 1e-4


def completions(
    slots: int, keys: list[int], *, batch_size: int, temperature: float = 1.0
) -> list[list[Completion]]:
    settings = [LoraSettings(r=4, lora_alpha=10)] * slots
    stack = AdapterStack(tiny_model("llama"), lora=settings, attach=with_banks(BANK))
    for slot in range(slots):
        stack.initialise(slot, 0)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(keys))]
    with stack.evaluating("off"):
        return generate(
            stack,
            prompts,
            max_new_tokens=9,
            end_token_ids=[END_TOKEN_ID],
            batch_size=batch_size,
            sampling=Sampling(keys=keys, temperature=temperature),
        )


def test_a_sample_depends_on_its_key_alone() -> None:
    keys = sample_keys(3, [("x", i) for i in range(10)])
    (reference,) = completions(1, keys, batch_size=10)
    assert completions(1, keys, batch_size=10) == [reference]
    for batch_size in (1, 3):
        assert completions(1, keys, batch_size=batch_size) == [reference]
    for slot in completions(3, keys, batch_size=4):
        assert slot == reference
    (other,) = completions(1, sample_keys(4, [("x", i) for i in range(10)]), batch_size=10)
    assert sum(a == b for a, b in zip(reference, other, strict=True)) <= 2
    (same,) = completions(1, [keys[0]] * (len(PROMPTS) + 1), batch_size=5)
    assert same[0] == same[-1] == reference[0]
    assert len({tuple(c.tokens) for c in reference}) == 10


def test_a_low_temperature_is_greedy() -> None:
    settings = [LoraSettings(r=4, lora_alpha=10)]
    keys = sample_keys(0, [("x", i) for i in range(6)])
    (cold,) = completions(1, keys, batch_size=6, temperature=1e-4)
    stack = AdapterStack(tiny_model("llama"), lora=settings, attach=with_banks(BANK))
    stack.initialise(0, 0)
    with stack.evaluating("off"):
        (greedy,) = generate(
            stack, PROMPTS[:6], max_new_tokens=9, end_token_ids=[END_TOKEN_ID], batch_size=6
        )
    assert cold == greedy
