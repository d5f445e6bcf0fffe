"""slotwise.py: what transformers' generate completes, slot by slot, is what our decoder does."""

from collections.abc import Sequence

import pytest
import torch
from transformers import GenerationConfig

from cohorts import BANK, with_banks
from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine.decoding.decode import generate
from schemabank.engine.decoding.sampling import Sampling, sample_keys
from schemabank.engine.decoding.slotwise import generate_by_slot
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.bank import Routing
from tiny import Kind, tiny_model

KINDS: tuple[Kind, ...] = ("llama", "gemma3")
LORA = [LoraSettings(r=4, lora_alpha=10), LoraSettings(r=2, lora_alpha=7), LoraSettings(r=4)]
PROMPTS = [[5, 9], list(range(20, 47)), [7], [200, 3], [90, 91], [8], [11]]
LIMIT = 10


def stacked(kind: Kind) -> AdapterStack:
    """Three slots with large random adapters and banks. float64: rounding flips no argmax."""
    stack = AdapterStack(tiny_model(kind).double(), lora=LORA, attach=with_banks(BANK))
    for bank in banks_of(stack).banks.values():
        bank.double()
    generator = torch.Generator().manual_seed(1)
    for slot in range(len(LORA)):
        stack.initialise(slot, slot)
        stack.lora.load(
            slot,
            {
                path: (a, torch.randn(b.shape, generator=generator) * 0.3)
                for path, (a, b) in stack.lora.tensors(slot).items()
            },
        )
        banks = banks_of(stack).tensors(slot)
        banks_of(stack).load(slot, {name: 3 * values for name, values in banks.items()})
    return stack


def holds(token: int) -> object:
    """A stop text that one token writes, which the prompt may hold, too."""

    def stopped(prompt: Sequence[int], tokens: list[int]) -> bool:
        assert list(prompt) in PROMPTS
        return token in tokens

    return stopped


@pytest.mark.parametrize("routing", ["off", "on", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_completions_are_those_of_our_decoder(kind: Kind, routing: Routing) -> None:
    stack = stacked(kind)
    with stack.evaluating(routing):
        for batch_size in (1, 2, 9):
            found, expected = (
                decode(
                    stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=(), batch_size=batch_size
                )
                for decode in (generate_by_slot, generate)
            )
            assert found == expected
    assert len({str(slot) for slot in found}) == 3, "slots that differ"


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_draws_are_those_of_our_decoder(top_p: float) -> None:
    stack = stacked("llama")
    keys = sample_keys(3, [("item", number) for number in range(len(PROMPTS))])
    sampling = Sampling(keys=keys, temperature=1.3, top_p=top_p)
    with stack.evaluating("on"):
        found, expected = (
            decode(
                stack,
                PROMPTS,
                max_new_tokens=LIMIT,
                end_token_ids=(),
                batch_size=3,
                sampling=sampling,
            )
            for decode in (generate_by_slot, generate)
        )
    assert found == expected


def test_end_tokens_and_stop_texts_end_where_they_do_in_our_decoder() -> None:
    stack = stacked("llama")
    with stack.evaluating("off"):
        whole = generate(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=(), batch_size=9)
        written = [done.tokens for slot in whole for done in slot]
        end, stop = written[0][3], written[-1][2]
        found, expected = (
            decode(
                stack,
                PROMPTS,
                max_new_tokens=LIMIT,
                end_token_ids=(end, 299),
                batch_size=3,
                stopped=holds(stop),
            )
            for decode in (generate_by_slot, generate)
        )
    assert found == expected
    reasons = {done.stop_reason for slot in found for done in slot}
    assert reasons >= {"end_token", "stop_text"}


def test_a_models_own_defaults_change_nothing_and_are_back_afterwards() -> None:
    stack = stacked("llama")
    with stack.evaluating("off"):
        expected = generate(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=(), batch_size=9)
        own = GenerationConfig(repetition_penalty=5.0, do_sample=True, min_new_tokens=4)
        stack.model.generation_config = own
        found = generate_by_slot(
            stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=(), batch_size=9
        )
    assert found == expected
    assert stack.model.generation_config is own
    assert stack.lora.dropout.only is banks_of(stack).only is None


def test_prompts_are_reported_once_all_slots_have_completed_them() -> None:
    stack = stacked("llama")
    done: list[int] = []
    with stack.evaluating("off"):
        generate_by_slot(
            stack,
            PROMPTS,
            max_new_tokens=2,
            end_token_ids=(),
            batch_size=2,
            advance=done.append,
        )
    assert done == [1, 2, 1, 2, 1]


def test_nothing_to_decode() -> None:
    stack = stacked("llama")
    settings = {"max_new_tokens": 2, "end_token_ids": (), "batch_size": 2}
    with stack.evaluating("off"):
        assert generate_by_slot(stack, [], **settings) == [[], [], []]
        with pytest.raises(InputError, match="prompt 1 has no tokens"):
            generate_by_slot(stack, [[1], []], **settings)
